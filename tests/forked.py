# SPDX-License-Identifier: Apache-2.0
"""Trainings in children of a server that has imported everything once.

They start in a moment and can be killed. A process has one server, with one list of what it
imports, so whoever starts children shares it.
"""

import multiprocessing
import os
import resource

import torch
from mmdet.registry import RUNNERS
from mmdet.utils import register_all_modules

from mal_mmdet.apis import resume_latest, set_launcher
from mal_mmdet.engine import stop_signals
from tests.conftest import free_port

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "mal_mmdet.apis",
        "mmdet.utils",
        "tests.compiled",
        "tests.test_faults",
        "tests.test_label_faults",
        "tests.apis.test_labeling",
    ]
)


def begin(output, limit=None):
    """What a child does first: all that it prints goes to a file; ``limit`` is of any file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def work(cfg, output, environment=None, limit=None):
    """A training in a child, as tools/train.py --resume runs it."""
    os.environ.update(environment or {})
    begin(output, limit)
    if environment:
        set_launcher(cfg, "pytorch")
    resume_latest(cfg)
    with stop_signals.handled():
        RUNNERS.build(cfg).train()


def train(cfg, output, **options):
    """Returns the exit code of a training."""
    child = SERVER.Process(target=work, args=(cfg, output), kwargs=options)
    child.start()
    child.join(240)
    child.kill()  # one that hangs
    return child.exitcode


def ranks(cfg, tmp_path):
    """Two ranks of a training; returns their exit codes and outputs."""
    shared = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    children = []
    for rank in range(2):
        environment = dict(shared, RANK=str(rank), LOCAL_RANK=str(rank))
        output = tmp_path / f"rank{rank}.txt"
        kwargs = dict(environment=environment)
        children.append(SERVER.Process(target=work, args=(cfg, output), kwargs=kwargs))
        children[-1].start()
    for child in children:
        child.join(240)
    codes = [child.exitcode for child in children]
    for child in children:
        child.kill()
    return codes, [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)]
