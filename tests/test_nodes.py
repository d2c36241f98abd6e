"""Whether a node sees the folder of results, before each trial."""

from __future__ import annotations

import shutil

import pytest

from epochlens.errors import UsageError
from epochlens.sweep import nodes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def test_a_node_sees_the_latest_session_and_no_other(tmp_path):
    folder = tmp_path / "results" / "s"
    nodes.leave_sign(folder, "first")
    nodes.check_sees(folder, "first")
    nodes.leave_sign(folder, "second")
    nodes.check_sees(folder, "second")
    for unseen in (folder, tmp_path / "elsewhere"):
        with pytest.raises(UsageError, match=r"does not work on node .*that all nodes share"):
            nodes.check_sees(unseen, "first")


def test_deleting_the_scratch_of_tune_blinds_nobody(tmp_path):
    (tmp_path / "tune").mkdir()
    nodes.leave_sign(tmp_path, "session")
    shutil.rmtree(tmp_path / "tune")
    nodes.check_sees(tmp_path, "session")
