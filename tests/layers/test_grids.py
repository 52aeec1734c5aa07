import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.errors import RangeError, ShapeError
from enxuto.layers import Affine, AffineTensor, Table, TableTensor
from enxuto.layers.packing import pack, storage_bits, unpack

law = settings(deadline=None, max_examples=40, derandomize=True)
GRIDS = [
    *(Affine(bits, per) for bits in range(1, 9) for per in ("tensor", "channel")),
    *(Affine(bits, "group", group=4) for bits in (1, 2, 3, 4, 8)),
    Affine(4, fit="absmax"),
    Affine(8, "group", group=6, fit="absmax"),
    *(Table(bits) for bits in range(1, 9)),
]


def weight(seed: int = 0, size: float = 1.0) -> torch.Tensor:
    return torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(seed)) * size


@law
@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(bits, count, seed):
    codes = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert packed.numel() == -(-count * storage_bits(bits) // 8)
    assert torch.equal(unpack(packed, bits, count), codes.to(torch.int32))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_projecting_twice_changes_nothing_more(grid, size):
    once = grid.encode(weight(size=size))
    decoded = once()
    assert torch.equal(grid.encode(decoded)(), decoded)
    again = once.recode(decoded)
    assert torch.equal(again.codes, once.codes)
    assert torch.equal(again(), decoded)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tiny_and_huge_weights_lose_no_more_than_ordinary_ones(grid):
    def lost(size):
        x = weight(size=size).double()
        return float((grid.encode(x.float())().double() - x).norm() / x.norm())

    for power in (-100, -20, 20, 100):  # two bytes an entry of a codebook, where they do, lose a little more
        assert lost(2.0**power) == pytest.approx(lost(1.0), rel=1e-6, abs=2e-4 if isinstance(grid, Table) else 0)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits > 1] + [Table(1)], ids=str)
def test_zero_stays_zero(grid):
    x = weight() * (torch.rand(6, 4, 3) > 0.6)
    decoded = grid.encode(x)()
    assert bool((decoded[x == 0] == 0).all())
    assert not bool(torch.signbit(decoded[decoded == 0]).any())


@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
def test_one_bit_refuses_zeros_with_the_share_of_them(per):
    x = weight()
    x[0, 0, 0] = 0
    with pytest.raises(ShapeError, match=r"1\.4% of the weights of 'fc'.*bits=2"):
        Affine(1, per, group=4).encode(x, "fc")
    with pytest.raises(ShapeError, match="no code for zero"):
        Affine(1, per, group=4).encode(weight()).recode(x)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("value", [0.0, 0.37, -1e-6])
def test_constant_weights_come_back(grid, value):
    if grid.bits == 1 and value == 0 and isinstance(grid, Affine):
        return
    x = torch.full((6, 12), value)
    # tables keep two bytes an entry, groups a bfloat16 scale
    assert torch.allclose(grid.encode(x)(), x, rtol=4e-3 if getattr(grid, "per", "") == "group" else 5e-4, atol=0)


@pytest.mark.parametrize("grid", [Affine(8), Affine(1, "tensor"), Table(4), Table(1)], ids=str)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (5,), ()])
def test_small_tensors_have_codes_too(grid, shape):
    x = torch.full(shape, -0.5)
    assert torch.allclose(grid.encode(x)(), x, rtol=2**-15, atol=0)


@pytest.mark.parametrize("grid", [Affine(4), Table(4)], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_values_that_are_not_finite_are_refused(grid, bad):
    x = weight().double()
    x[0, 0, 0] = bad
    with pytest.raises(RangeError, match="'fc' holds values that are not finite"):
        grid.encode(x, "fc")


def test_affine_error_is_at_most_half_a_step():
    x = weight(4)
    for bits in range(2, 9):
        coded = Affine(bits, "channel", fit="absmax").encode(x)
        assert bool(((coded() - x).abs() <= coded.scale.view(-1, 1, 1) * 0.5001 + 127 * 2e-5 * coded.scale.max()).all())


def test_codes_are_as_small_as_promised():
    x = torch.randn(64, 64)
    assert Affine(4).encode(x).codes.numel() == 64 * 64 // 2
    assert Affine(3).encode(x).codes.numel() == 64 * 64 // 2
    assert Table(2).encode(x).codes.numel() == 64 * 64 // 4
    assert Affine(4, "group", group=32).encode(x).scale.element_size() == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Affine(0), "bits=0"),
        (lambda: Affine(9), "bits=9"),
        (lambda: Affine(True), "bits=True"),
        (lambda: Affine(4.0), "bits=4.0"),
        (lambda: Affine(4, "row"), "per='row'"),
        (lambda: Affine(4, "group", group=0), "group=0"),
        (lambda: Affine(4, "group", group=2.5), "group=2.5"),
        (lambda: Affine(4, fit="best"), "fit='best'"),
        (lambda: Table(0), "bits=0"),
        (lambda: Table(9), "bits=9"),
    ],
)
def test_grids_refuse_what_makes_no_sense(make, words):
    with pytest.raises(RangeError, match=words):
        make()


def test_a_group_that_does_not_divide_is_told_what_would():
    with pytest.raises(ShapeError, match=r"group=5 does not divide the 12 inputs of 'fc'; use one of 2, 3, 4, 6, 12"):
        Affine(4, "group", group=5).encode(weight(), "fc")


@pytest.mark.parametrize("grid", [Affine(8), Affine(4, "tensor"), Affine(4, "group", group=4), Table(3)], ids=str)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_taking_slices_keeps_the_values_of_what_is_left(grid, dim):
    coded, keep = grid.encode(weight()), torch.tensor([0, 2])
    left = coded.take(dim, keep, "fc")
    same = coded().index_select(dim, keep)
    if getattr(grid, "per", "") == "group" and dim > 0:
        assert torch.allclose(left(), same, atol=0.2)  # groups moved: their scales are fitted again
    else:
        assert torch.equal(left(), same)


def test_a_table_keeps_precision_where_two_bytes_would_lose_it():
    x = 1 + torch.randn(5000) * 1e-4
    book = Table(8).encode(x)
    assert float((book() - x).abs().max()) < 1e-4
    assert len(book.codebook.unique()) == len(book.codebook)
    usual = Table(4).encode(torch.randn(5000)).codebook
    assert torch.equal(usual, usual.half().float())


@pytest.mark.parametrize("grid", [Affine(8), Affine(4, "group", group=4), Table(4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype_decodes_to_it_and_keeps_its_grid(grid, dtype):
    coded = grid.encode(weight(size=1e-3))
    decoded, state = coded(), {name: tensor.clone() for name, tensor in coded.state_dict().items()}
    coded.to(dtype)
    assert coded().dtype == dtype
    assert torch.equal(coded(), decoded.to(dtype))
    assert all(torch.equal(tensor, state[name]) for name, tensor in coded.state_dict().items())
    assert torch.equal(coded.float()(), decoded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grid", [Affine(8), Affine(4, "group", group=4), Table(4)], ids=str)
def test_coding_a_weight_keeps_its_dtype(grid, dtype):
    x = weight().to(dtype)
    coded = grid.encode(x)
    assert coded().dtype == dtype
    assert torch.equal(coded.recode(coded())(), coded())


def test_becoming_another_tensor_takes_over_all_of_it():
    a, b = Affine(8).encode(weight(0)), Affine(4).encode(weight(1))
    a.become_(b)
    assert torch.equal(a(), b())
    assert a.grid == b.grid


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_no_code_is_beyond_the_number_of_symbols(grid):
    coded = grid.encode(weight())
    assert isinstance(coded, (AffineTensor, TableTensor))
    assert 0 <= int(coded.integers().min()) <= int(coded.integers().max()) < coded.symbols <= 2**grid.bits


@pytest.mark.parametrize("grid", [Affine(1), Affine(3), Affine(4, "group", 9), Affine(8, "tensor"), Table(3), Table(8)])
def test_a_weight_coded_and_decoded_in_pieces_is_the_same_to_the_bit(grid, monkeypatch):
    weight = torch.randn(40, 27, generator=torch.Generator().manual_seed(0))
    whole = grid.encode(weight)
    values = whole()
    for name in ("functional.affine.PIECE", "layers.grids.PIECE", "layers.table.PIECE", "functional.table.PIECE"):
        monkeypatch.setattr(f"enxuto.{name}", 8)
    pieces = grid.encode(weight)
    assert torch.equal(pieces.codes, whole.codes)
    assert torch.equal(pieces(), values)
    assert torch.equal(pieces.symbol_bytes().int(), whole.integers())
