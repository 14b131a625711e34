"""Stored arrays: the values that numpy reads, one sample at a time, and one line for whatever is damaged."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quantrim.errors import DataError
from quantrim.graph.arrays import stored_arrays
from quantrim.graph.feeds import calibration_feeds
from quantrim.graph.ports import Port

ARRAY = np.random.default_rng(0).standard_normal((5, 3, 4, 2)).astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(
        hnp.scalar_dtypes(),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    ),
    st.booleans(),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_the_samples_are_those_that_numpy_reads(tmp_path, array, fortran, save):
    array = np.asfortranarray(array) if fortran else array
    save(tmp_path / "a.npz", x=array)
    np.save(tmp_path / "a.npy", array)
    for stored in (stored_arrays(tmp_path / "a.npz")["x"], stored_arrays(tmp_path / "a.npy")[""]):
        assert (stored.shape, stored.dtype, len(stored)) == (array.shape, array.dtype, len(array))
        for got, expected in zip(stored, array, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_few_samples_of_a_large_archive_cost_a_few_samples(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(np.zeros((400, 50_000), np.float32)))
    stored = stored_arrays(tmp_path / "a.npz")["x"]
    tracemalloc.start()
    rows = iter(stored)
    assert [float(next(rows).sum()) for _ in range(3)] == [0.0] * 3
    rows.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def damaged() -> dict[str, bytes]:
    whole = npy(ARRAY)
    shape = str(ARRAY.shape).encode()

    def with_shape(text: bytes) -> bytes:
        return whole.replace(shape, text.ljust(len(shape)), 1)

    objects = io.BytesIO()
    np.save(objects, np.array([{}], object), allow_pickle=True)
    return {
        "empty.npy": b"",
        "text.npy": b"no array",
        "cut.npy": whole[:-4],
        "head.npy": whole[:40],
        "negative.npy": with_shape(b"(-5, 3, 4, 2)"),
        "fraction.npy": with_shape(b"(5., 3, 4, 2)"),
        "truth.npy": with_shape(b"(True, 3, 2)"),
        "hollow.npy": with_shape(b"(9999999999,0)"),
        "huge.npy": with_shape(b"(9999999999,)"),
        "open.npy": whole.replace(b"{'descr'", b"{('descr", 1),
        "quote.npy": whole.replace(b"'fortran_order'", b"'fortran_order\"", 1),
        "type.npy": whole.replace(b"'<f4'", b"'<x4'", 1),
        "version.npy": whole[:6] + b"\x02" + whole[7:],
        "objects.npy": objects.getvalue(),
        "nested.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    }


@pytest.mark.parametrize("name", damaged())
@pytest.mark.parametrize("archived", [False, True])
def test_a_damaged_array_is_one_line_that_names_the_file(name, archived, tmp_path):
    path = tmp_path / name
    path.write_bytes(damaged()[name])
    if archived:
        path = path.with_suffix(".npz")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", damaged()[name])
    with pytest.raises(DataError, match=path.name) as error:
        list(next(iter(stored_arrays(path).values())))
    assert "\n" not in str(error.value)


def test_an_encrypted_or_cut_archive_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=ARRAY)
    data = bytearray(path.read_bytes())
    for broken in (bytes(data[:200]), _encrypted(data)):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.npz"):
            stored_arrays(path)


def _encrypted(data: bytearray) -> bytes:
    data[data.find(b"PK\x01\x02") + 8] |= 1
    data[6] |= 1
    return bytes(data)


def test_flipped_bits_never_end_in_anything_but_a_data_error(tmp_path):
    generator = np.random.default_rng(5)
    np.savez_compressed(tmp_path / "a.npz", x=ARRAY)
    for path, data in (
        (tmp_path / "b.npy", npy(ARRAY)),
        (tmp_path / "b.npz", (tmp_path / "a.npz").read_bytes()),
    ):
        for _ in range(150):
            bad = bytearray(data)
            for _ in range(int(generator.integers(1, 4))):
                bad[int(generator.integers(min(len(bad), 400)))] ^= 1 << int(generator.integers(8))
            path.write_bytes(bad)
            try:
                for stored in stored_arrays(path).values():
                    list(stored)
            except DataError:
                continue


def test_a_double_beyond_float32_is_refused_as_infinite(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 3, 4, 4), 1e300))
    port = Port("x", (None, 3, 4, 4), np.dtype(np.float32))
    with pytest.raises(DataError, match="NaN or infinite values"):
        list(calibration_feeds(tmp_path / "a.npy", [port], samples=2))
