import pytest
import torch

from rlft.actors.weights.buckets import pack, unpack
from rlft.actors.weights.receipt import (
    NUM_COLUMNS,
    ReceiptWriter,
    add,
    checksum,
    narrowed,
    received_wrong,
    refuse,
    sampled_columns,
)
from rlft.errors import PublishError

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(300, 64), (7, 5), (129,), (3, 4, 6), ()]


def numbers(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_copy_has_the_same_checksum_and_one_changed_bit_another(dtype, shape):
    tensor = numbers(shape, dtype)
    changed = tensor.clone()
    changed.view(-1).view(torch.uint8)[0] ^= 1
    assert checksum(tensor) == checksum(tensor.clone()) != checksum(changed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_checksum_sees_rows_columns_and_elements_that_change_places(dtype):
    tensor = numbers((300, 64), dtype)
    rows, columns, elements = tensor.clone(), tensor.clone(), tensor.clone()
    rows[[3, 7]], columns[:, [3, 7]] = tensor[[7, 3]], tensor[:, [7, 3]]
    elements[0, 0], elements[9, 9] = tensor[9, 9], tensor[0, 0]
    assert len({checksum(x) for x in (tensor, rows, columns, elements)}) == 4


def test_bfloat16_numbers_in_float32_change_the_sum_in_all_its_bits():
    base = numbers((1, 64), torch.bfloat16).float()
    sums = set()
    for i in range(64):
        changed = base.clone()
        changed[0, i] *= 2
        sums.add(checksum(changed) - checksum(base) & 0xFFFF)
    assert len(sums) > 40  # without mixing the lower half would be 0 each time


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [(slice(0, 100), slice(None)), (slice(None), slice(0, 14)), (slice(5, 9), slice(4, 40))])
def test_the_sums_of_parts_add_up_to_the_whole(dtype, cut):
    whole = numbers((300, 64), dtype)
    part, rest = torch.zeros_like(whole), whole.clone()
    part[cut], rest[cut] = whole[cut], 0
    assert add([checksum(part), checksum(rest)]) == checksum(whole)
    assert checksum(part) != checksum(whole)


@pytest.mark.parametrize("width", [1, 5, 8, 64, 576, 1536])
def test_versions_in_a_row_sample_every_column_once_before_any_comes_again(width):
    publishes = -(-width // NUM_COLUMNS)
    drawn = [sampled_columns(width, version) for version in range(publishes)]
    assert all(len(set(columns)) == len(columns) == min(NUM_COLUMNS, width) for columns in drawn)
    assert {column for columns in drawn for column in columns} == set(range(width))


def sent(weights, version=3):
    writer = ReceiptWriter(version, columns=True)
    bucket = pack(writer.note(weights.items()))
    return writer.receipt(), dict(unpack(bucket))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_arrives_as_it_was_sent_is_right_and_anything_else_is_named(dtype):
    weights = {"a": numbers((6, 4), dtype), "b": numbers((6, 4), dtype, 1), "c": numbers((4,), dtype)}
    receipt, arrived = sent(weights)
    assert received_wrong(receipt, arrived.items()) == {}
    assert all(torch.equal(arrived[name], weights[name]) for name in weights)
    swapped = {**arrived, "a": arrived["b"], "b": arrived["a"]}
    assert set(received_wrong(receipt, swapped.items())) == {"a", "b"}
    assert received_wrong(receipt, {**arrived, "c": arrived["c"].flip(0)}.items()) == {"c": "it did not arrive as it was sent"}
    less = {name: tensor for name, tensor in arrived.items() if name != "b"}
    assert received_wrong(receipt, less.items()) == {"b": "it did not arrive"}
    assert received_wrong(receipt, {**arrived, "d": arrived["a"]}.items()) == {"d": "it was not sent"}


def test_the_receipt_holds_the_columns_of_its_version():
    weights = {"a": numbers((6, 40), torch.float32), "norm": numbers((4,), torch.float32)}
    receipt, _ = sent(weights, version=2)
    assert torch.equal(receipt.tensors["a"].columns, weights["a"][:, list(sampled_columns(40, 2))])
    assert receipt.tensors["norm"].columns is None


def test_weights_are_narrowed_to_a_coarser_engine_and_never_widened():
    weights = [("a", numbers((2, 2), torch.float32)), ("b", numbers((2, 2), torch.bfloat16)), ("steps", torch.tensor(3))]
    coarse = [tensor.dtype for _, tensor in narrowed(weights, "bfloat16")]
    assert coarse == [torch.bfloat16, torch.bfloat16, torch.int64]
    for dtype in ("float32", ""):
        assert [tensor.dtype for _, tensor in narrowed(weights, dtype)] == [torch.float32, torch.bfloat16, torch.int64]


def test_a_refusal_names_worker_version_tensors_and_what_to_do():
    refuse({}, 9, "rollout worker 2", 5)
    with pytest.raises(PublishError, match=r"^rollout worker 2 does not hold the weights of version 5: 6 of 9 .*t0: gone;.*--resume"):
        refuse({f"t{i}": "gone" for i in range(6)}, 9, "rollout worker 2", 5)
