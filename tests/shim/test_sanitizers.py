"""The shim under AddressSanitizer and ThreadSanitizer, with threads, forks, pools, graphs and a cap that is reached.

The shim and the simulated driver are built with the instrumentation, the program is not; any report fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shim.conftest import MIB, SANITIZER, SANITIZER_OPTIONS, TOP, Build, Native, Node, sanitizer_runtime

pytestmark = pytest.mark.skipif(bool(SANITIZER), reason="everything is instrumented already")

ROUNDS = {"address": 60, "thread": 25}
BUILD_TIMEOUT_S = 300


@pytest.fixture(params=list(ROUNDS))
def instrumented(request: pytest.FixtureRequest) -> tuple[str, Native]:
    """The libraries as `make sanitize` builds them; kept in build/, since that takes a while."""
    sanitizer: str = request.param
    sanitizer_runtime(sanitizer)
    done = subprocess.run(
        [sys.executable, "-m", "hamirt._build"],
        cwd=TOP,
        env=os.environ | {"HAMIRT_SANITIZE": sanitizer},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return sanitizer, Native(TOP / "build" / sanitizer / "_native")


def command(sanitizer: str, *rest: str | Path) -> list[str | Path]:
    """Fix the address space for ThreadSanitizer, whose shadow memory does not get along with much randomness."""
    return ["setarch", "-R", *rest] if sanitizer == "thread" else list(rest)


def test_no_report(instrumented: tuple[str, Native], build: Build, tmp_path: Path) -> None:
    sanitizer, native = instrumented
    node = Node(tmp_path / "root", native)
    tenant = node.tenant(mem=760 * MIB)
    program = build("fork_mix")

    done = node.run(
        command(sanitizer, program, str(ROUNDS[sanitizer])),
        tenant,
        preload=[*sanitizer_runtime(sanitizer), native.shim],
        extra=SANITIZER_OPTIONS[sanitizer],
        timeout=120,
        check=False,
    )

    assert "Sanitizer" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    assert done.stdout == "refused some\n", "the cap was not reached: nothing of that was tried"


def test_a_fault_would_be_reported(instrumented: tuple[str, Native], build: Build, tmp_path: Path) -> None:
    sanitizer, native = instrumented
    node = Node(tmp_path / "root", native)
    (tmp_path / "faulty.c").write_text(FAULTY)
    flag = f"-fsanitize={sanitizer}"
    library = build(tmp_path / "faulty.c", flag, "-DFAULTY", shared=True, driver=False)
    program = build(tmp_path / "faulty.c", driver=False)

    done = node.run(
        command(sanitizer, program),
        preload=[*sanitizer_runtime(sanitizer), library],
        extra=SANITIZER_OPTIONS[sanitizer],
        check=False,
    )

    assert done.returncode == 77
    assert "Sanitizer" in done.stderr


# A preloaded library with a race and a write behind its memory, and a program that uses it.
FAULTY = """
#include <pthread.h>
#include <stdlib.h>
#ifdef FAULTY
int shared;
void *
faulty(void *memory)
{
    ((volatile char *)memory)[16] = 1;
    for (int i = 0; i < 1000; i++)
        shared++;
    return NULL;
}
#else
#include <dlfcn.h>
int
main(void)
{
    void *(*faulty)(void *);
    pthread_t thread[2];

    *(void **)&faulty = dlsym(RTLD_DEFAULT, "faulty");
    for (int i = 0; i < 2; i++)
        pthread_create(&thread[i], NULL, faulty, malloc(16));
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    return 0;
}
#endif
"""
