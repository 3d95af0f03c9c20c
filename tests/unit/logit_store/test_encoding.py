"""What all encodings promise, and how one is made from a description."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from accel_kd.errors import UserError
from accel_kd.logit_store.encoding import Full, Sampled, TopK, encoding_of
from accel_kd.signals import SignalNeeds

DESCRIPTIONS = [
    {"type": "full", "dtype": "float32"},
    {"type": "full", "dtype": "bfloat16"},
    {"type": "full", "dtype": "float16"},
    {"type": "top_k", "k": 5, "value_bits": 16, "temperatures": [1.0, 2.5]},
    {"type": "top_k", "k": 5, "value_bits": 8, "temperatures": [1.0]},
    {"type": "top_k", "k": 37, "value_bits": 16, "temperatures": [1.0]},
    {"type": "top_k", "k": 37, "value_bits": 8, "temperatures": [1.0, 2.0]},
    {"type": "top_k", "k": 1, "value_bits": 8, "temperatures": [1.0]},
    {"type": "sampled", "num_samples": 8, "temperature": 2.0, "seed": 3},
    {"type": "sampled", "num_samples": 300, "temperature": 1.0, "seed": 0},
]
every_encoding = pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda it: "-".join(map(str, it.values())))
NUM_CLASSES = 37


def rough_logits(num_rows, num_classes=NUM_CLASSES, seed=0):
    """Rounded to quarters, so that a row has many equal ones."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, num_classes, generator=generator) * 12).round() / 4


def noise_keys(num_rows):
    return np.arange(100, 100 + num_rows, dtype=np.uint64)


@every_encoding
def test_a_description_survives_json_and_makes_the_same_encoding(description):
    encoding = encoding_of(description, NUM_CLASSES)
    assert encoding.describe() == description and encoding.num_classes == NUM_CLASSES
    assert encoding_of(json.loads(json.dumps(encoding.describe())), NUM_CLASSES) == encoding


@every_encoding
@pytest.mark.parametrize("num_rows", [0, 1, 7])
def test_tensors_have_the_layout_that_is_announced(description, num_rows):
    encoding = encoding_of(description, NUM_CLASSES)
    tensors = encoding.encode(rough_logits(num_rows), noise_keys(num_rows))
    assert {name: (it.dtype, tuple(it.shape)) for name, it in tensors.items()} == {
        name: (dtype, (num_rows, width)) for name, (dtype, width) in encoding.layout().items()
    }
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert sum(tensor.nbytes for tensor in tensors.values()) == num_rows * encoding.bytes_per_position
    signal = encoding.decode(tensors)
    for field in dataclasses.fields(signal):
        value = getattr(signal, field.name)
        for tensor in [*value.values()] if isinstance(value, dict) else [value]:
            if isinstance(tensor, torch.Tensor):
                assert len(tensor) == num_rows and tensor.dtype in (torch.float32, torch.int64)


@every_encoding
@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 150_000])
def test_a_position_is_kept_alike_whatever_is_beside_it(description, num_classes):
    encoding = encoding_of(description, num_classes)
    logits, keys = rough_logits(9, num_classes), noise_keys(9)
    together = encoding.encode(logits, keys)
    order = torch.tensor([4, 0, 8, 7, 1, 2, 6, 5, 3])
    shuffled = encoding.encode(logits[order], keys[order.numpy()])
    alone = [encoding.encode(logits[row : row + 1], keys[row : row + 1]) for row in range(9)]
    for name, tensor in together.items():
        assert torch.equal(tensor[order], shuffled[name])
        assert torch.equal(tensor, torch.cat([part[name] for part in alone]))


@every_encoding
def test_what_is_kept_does_not_change_with_the_callers_logits(description):
    encoding = encoding_of(description, NUM_CLASSES)
    logits = rough_logits(4)
    tensors = encoding.encode(logits, noise_keys(4))
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    untouched = rough_logits(4)
    assert torch.equal(logits, untouched)
    logits += 1 + torch.arange(NUM_CLASSES)
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@every_encoding
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_the_callers_mistake(description, bad):
    logits = rough_logits(3)
    logits[2, 5] = bad
    with pytest.raises(AssertionError, match="not finite"):
        encoding_of(description, NUM_CLASSES).encode(logits, noise_keys(3))


def test_the_order_of_temperatures_does_not_make_another_encoding():
    one, other = (TopK(9, 3, 16, temperatures) for temperatures in ((0.5, 8.0, 3.0, 1), (8, 3, 0.5, 3.0)))
    assert one == other and hash(one) == hash(other)
    assert one.describe() == other.describe() and one.describe()["temperatures"] == [0.5, 1.0, 3.0, 8.0]


def test_every_encoding_says_what_it_provides():
    any_temperature = SignalNeeds(logits=True, every_logit=True, exact=True, temperatures=None)
    assert Full(9, "float16").provides == any_temperature
    some = TopK(9, 3, 16, (4.0, 2.0))
    assert some.provides == SignalNeeds(logits=True, exact=True, temperatures=frozenset({1.0, 2.0, 4.0}))
    assert TopK(9, 9, 16, (1.0,)).provides == SignalNeeds(logits=True, exact=True, temperatures=None)
    # Codes of 8 bits reach only so far down as the promised temperatures need.
    assert TopK(9, 9, 8, (2.0,)).provides.temperatures == frozenset({1.0, 2.0})
    drawn = Sampled(9, 3, 2.0, 0)
    assert drawn.provides == SignalNeeds(logits=True, exact=False, temperatures=frozenset({2.0}))


TOP_K = {"type": "top_k", "k": 5, "value_bits": 16, "temperatures": [1.0]}
SAMPLED = {"type": "sampled", "num_samples": 8, "temperature": 2.0, "seed": 3}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("full", " is 'full': give a type and its settings"),
        ({}, ".type is None: use one of full, top_k, sampled"),
        ({"type": "top-k"}, ".type is 'top-k'"),
        ({"type": ["full"]}, ".type is \\['full'\\]"),
        ({"type": "full"}, ".dtype is missing, which full needs"),
        ({"type": "full", "dtype": "int8"}, ".dtype is 'int8': use one of float32"),
        ({"type": "full", "dtype": 16}, ".dtype is 16: give a name"),
        ({"type": "full", "dtype": "float16", "k": 5}, ".k is unknown for full: it has dtype"),
        ({**TOP_K, "k": 38}, ".k is 38, but the teacher has 37 classes: give a number from 1 to 37"),
        ({**TOP_K, "k": 0}, ".k is 0"),
        ({**TOP_K, "k": True}, ".k is True: give an integer"),
        ({**TOP_K, "k": 5.0}, ".k is 5.0: give an integer"),
        ({**TOP_K, "value_bits": 4}, ".value_bits is 4: use 8 or 16"),
        ({**TOP_K, "temperatures": 2.0}, ".temperatures is 2.0: give a list of numbers"),
        ({**TOP_K, "temperatures": [0]}, ".temperatures has 0: give positive"),
        ({**TOP_K, "temperatures": [float("nan")]}, ".temperatures has nan"),
        ({**TOP_K, "temperatures": [10**400]}, ".temperatures is .*: give a list of numbers"),
        ({**SAMPLED, "num_samples": 0}, ".num_samples is 0"),
        ({**SAMPLED, "temperature": -1}, ".temperature is -1"),
        ({**SAMPLED, "seed": -1}, ".seed is -1"),
        ({**SAMPLED, "seed": 2**64}, ".seed is 18446744073709551616"),
    ],
)
def test_a_description_that_means_nothing_is_refused_in_one_line(description, message):
    with pytest.raises(UserError, match=f"^teacher.store.encoding{message}") as raised:
        encoding_of(description, NUM_CLASSES)
    assert "\n" not in str(raised.value)
