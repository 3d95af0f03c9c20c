"""What is trained on hidden states: the student and its projections as one module, the student alone when scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from accel_kd.errors import UserError
from accel_kd.models.hidden_states import Stack, picked, stack_of
from accel_kd.models.loading import Checkpoint, load_classifier
from accel_kd.models.projected_student import ProjectedStudent, Projection, without_projections
from tests.support.tiny import config, tokenizer, write_model

PROJECTIONS = [Projection(0, 16, 32), Projection(-1, 16, 32), Projection(1, 16, None)]


@pytest.fixture
def student(tmp_path: Path) -> PreTrainedModel:
    """Two layers of 16 units."""
    folder = write_model(tmp_path / "student", layers=2, width=16, dropout=0.0)
    return load_classifier(Checkpoint(str(folder), "student.model"))


def inputs(texts: Sequence[str] = ("play the song", "rain", "please tell me what my account is")) -> dict[str, Tensor]:
    return dict(tokenizer()(list(texts), padding=True, return_tensors="pt"))


def test_in_training_it_gives_the_chosen_states_projected_where_they_are_to_be(student: PreTrainedModel) -> None:
    model, batch = ProjectedStudent(student, PROJECTIONS).train(), inputs()
    output = model(**batch)
    plain = student(**batch, output_hidden_states=True)
    attended = batch["attention_mask"].bool()
    assert torch.equal(output.logits, plain.logits)
    assert list(output.hidden_states) == [0, -1, 1]
    for layer, number in ((0, 0), (-1, 1)):
        weight = model.projections[number].weight
        expected = torch.einsum("blh,wh->blw", plain.hidden_states[layer], weight)
        torch.testing.assert_close(output.hidden_states[layer][attended], expected[attended], rtol=1e-4, atol=1e-5)
    assert torch.equal(output.hidden_states[1][attended], plain.hidden_states[1][attended])


def test_scored_it_is_the_student_and_nothing_else(student: PreTrainedModel) -> None:
    model, batch = ProjectedStudent(student, PROJECTIONS).eval(), inputs()
    output = model(**batch)
    assert output.hidden_states is None
    assert torch.equal(output.logits, student.eval()(**batch).logits)


def test_what_padding_holds_does_not_reach_the_projections(student: PreTrainedModel) -> None:
    model, batch = ProjectedStudent(student, PROJECTIONS).train(), inputs()
    padding = batch["attention_mask"] == 0
    assert padding.any()

    def spoil(module: object, arguments: object, output: Tensor) -> Tensor:
        return torch.where(padding.unsqueeze(-1), float("nan"), output)

    def gradient() -> list[Tensor]:
        attended = (~padding).unsqueeze(-1)
        states = model(**batch).hidden_states.values()
        loss = sum(torch.where(attended, each, 0.0).square().sum() for each in states)
        return list(torch.autograd.grad(loss, [model.projections[n].weight for n in (0, 1)]))

    expected = gradient()
    stack = [module for module in student.modules() if type(module).__name__ == "BertEmbeddings"]
    hook = stack[0].register_forward_hook(spoil)
    spoilt = gradient()
    hook.remove()
    assert torch.equal(spoilt[0], expected[0]) and torch.isfinite(spoilt[0]).all()


def test_its_state_is_the_students_and_the_projections_under_fixed_names(student: PreTrainedModel) -> None:
    model = ProjectedStudent(student, PROJECTIONS)
    names = {f"student.{name}" for name in student.state_dict()}
    assert set(model.state_dict()) == names | {"projections.0.weight", "projections.1.weight"}
    assert without_projections(model) is student and without_projections(student) is student
    assert model.num_parameters() == student.num_parameters()
    assert model.config is student.config and model._no_split_modules == student._no_split_modules


def test_its_projections_follow_the_generator_and_leave_the_students_weights_as_they_were(tmp_path: Path) -> None:
    def drawn(projections: Sequence[Projection]) -> dict[str, Tensor]:
        torch.manual_seed(7)
        folder = write_model(tmp_path / "student", layers=2, width=16, seed=7)
        model = load_classifier(Checkpoint(str(folder), "student.model"))
        return ProjectedStudent(model, projections).state_dict()

    one, again, without = drawn(PROJECTIONS), drawn(PROJECTIONS), drawn([])
    assert all(torch.equal(again[name], tensor) for name, tensor in one.items())
    assert all(torch.equal(one[name], tensor) for name, tensor in without.items())
    assert not torch.equal(one["projections.0.weight"], one["projections.1.weight"])


def test_every_parameter_has_a_gradient_also_where_no_token_counts(student: PreTrainedModel) -> None:
    model, batch = ProjectedStudent(student, PROJECTIONS).train(), inputs()
    output = model(**batch)
    loss = sum(torch.where(torch.tensor(False), each, 0.0).sum() for each in output.hidden_states.values())
    (loss + torch.where(torch.tensor(False), output.logits, 0.0).sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name


def test_sharded_by_the_students_own_blocks_it_has_the_same_gradient(student: PreTrainedModel, tmp_path: Path) -> None:
    """By `fully_shard` on one rank, whose hooks have to find the states in the output."""
    model, batch = ProjectedStudent(student, PROJECTIONS).train(), inputs()

    def gradient() -> dict[str, Tensor]:
        model.zero_grad()
        output = model(**batch)
        (output.logits.sum() + sum(states.square().sum() for states in output.hidden_states.values())).backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {
            n: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone() for n, tensor in found.items()
        }

    expected = gradient()
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        for module in student.modules():
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert sum(isinstance(parameter, DTensor) for parameter in model.parameters()) == len(expected)
        for name, tensor in gradient().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert model.eval()(**batch).hidden_states is None
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_the_stack_is_what_the_model_returns(kind: str, tmp_path: Path) -> None:
    model = load_classifier(Checkpoint(str(write_model(tmp_path / kind, kind, layers=3)), "student.model"))
    stack = stack_of(model.config, "student.model")
    batch = {name: tensor for name, tensor in inputs().items() if kind == "bert" or name != "token_type_ids"}
    output = model(**batch, output_hidden_states=True)
    assert stack == Stack(len(output.hidden_states) - 1, output.hidden_states[-1].shape[-1]) == Stack(3, 32)
    assert [layer for layer in range(-9, 9) if stack.has(layer)] == list(range(-4, 4))
    for layer in range(-4, 4):
        assert picked(output, [layer])[layer] is output.hidden_states[layer]


def test_a_model_without_one_stack_or_without_states_is_refused() -> None:
    two = config()
    two.is_encoder_decoder = True
    with pytest.raises(UserError, match=r"^objective\.terms: hidden_states reads one stack .* of student\.model"):
        stack_of(two, "student.model")
    with pytest.raises(UserError, match=r"^objective\.terms: hidden_states was asked for, and a Sequence"):
        picked(SequenceClassifierOutput(logits=torch.zeros(1, 2)), [-1])
