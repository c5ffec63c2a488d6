"""Sizes: what a person may write, and that nothing else gets through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hamirt.errors import HamirtError
from hamirt.units import GIB, MIB, format_mib, format_size, parse_cap


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("8GiB", 8 * GIB),
        ("8g", 8 * GIB),
        ("8G", 8 * GIB),
        ("8 GiB", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("8192MiB", 8 * GIB),
        ("8192m", 8 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("512k", 512 * 1024),
        ("1073741824", GIB),
        ("1024b", 1024),
        (" 1t ", 1024 * GIB),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    cap = parse_cap(text)

    assert (cap.size_bytes, cap.ratio) == (size_bytes, None)
    assert cap.resolve(5 * GIB) == size_bytes


@pytest.mark.parametrize(("text", "size_bytes"), [("50%", 40 * GIB), ("100%", 80 * GIB), ("12.5 %", 10 * GIB)])
def test_parts_of_the_card(text: str, size_bytes: int) -> None:
    assert parse_cap(text).resolve(80 * GIB) == size_bytes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "leaves no memory"),
        ("0%", "leaves no memory"),
        ("0.1b", "leaves no memory"),
        ("-1", "is not a size"),
        ("8X", "is not a size"),
        ("", "is not a size"),
        ("GiB", "is not a size"),
        ("8GiB9", "is not a size"),
        ("\u0661GiB", "is not a size"),
        ("1e3", "is not a size"),
        ("120%", "more than the card has"),
        ("100.000001%", "more than the card has"),
        ("9" * 18, "more than any card"),
        ("9" * 5000, "is not a size"),
    ],
)
def test_what_is_no_size(text: str, says: str) -> None:
    with pytest.raises(HamirtError, match=says):
        parse_cap(text)


@given(st.text())
def test_any_text_is_a_size_or_a_sentence(text: str) -> None:
    try:
        cap = parse_cap(text)
    except HamirtError as error:
        assert len(str(error)) > 20
    else:
        assert cap.resolve(80 * GIB) >= 0


@given(st.integers(1, 1 << 50))
def test_a_number_of_bytes_is_itself(size_bytes: int) -> None:
    assert parse_cap(str(size_bytes)).size_bytes == size_bytes


@given(st.integers(1, 1 << 20), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_what_is_printed_can_be_read_again(count: int, unit: str) -> None:
    size_bytes = parse_cap(f"{count}{unit}").size_bytes

    assert size_bytes is not None
    assert parse_cap(format_size(size_bytes)).size_bytes == size_bytes


def test_mib_are_rounded_down_as_in_nvidia_smi() -> None:
    assert format_mib(3 * MIB - 1) == "2"
