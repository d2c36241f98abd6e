"""The nodes of a cluster: whether each sees the folder of results, and tasks that must run on this one."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochlens.errors import UsageError
from epochlens.lazy import LazyModule
from epochlens.record.files import write_whole

if TYPE_CHECKING:
    import ray
    from ray import exceptions
else:
    ray, exceptions = LazyModule("ray"), LazyModule("ray.exceptions")

SIGN = ".session"
"""file of the sweep's folder that names the driver's session; not in Tune's scratch, which may be deleted"""
ANSWERED = 60.0
"""seconds in which a node must answer: it may have to start a process and import this package"""
SEEN = 5.0
"""seconds in which what is written on one node must be seen on another: file servers take their time"""
FIGURE_BYTES = 2**30
"""memory asked for a task of a node that offers no CPUs, so that not all run at the same time"""


def check_folder(folder: Path) -> None:
    """Raises UsageError, naming a node, unless every node of the cluster sees what is written in the folder.

    Each reads what this process wrote there, and writes an answer that this process reads. Nodes that join
    later are asked by `check_sees`, before each trial.
    """
    others = other_nodes()
    if not others:
        return
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / f".seen-{uuid.uuid4().hex}"
    asked.write_text(asked.name)
    try:
        answers = {node: ask(node, asked) for node in others}
        deadline = time.monotonic() + ANSWERED
        for node, answer in answers.items():
            problem = hear(answer, answer_file(asked, node), deadline)
            if problem:
                refuse(folder, f"{others[node]} (node {node[:8]})", problem)
    finally:
        for path in (asked, *(answer_file(asked, node) for node in others)):
            path.unlink(missing_ok=True)


def refuse(folder: Path, node: str, problem: str) -> None:
    """Raises the UsageError of a folder that a node does not see."""
    instead = "choose a --results-dir that all nodes share, or a URI on object storage (s3://BUCKET/PATH)"
    raise UsageError("results_dir", str(folder), f"does not work on {node}: {problem}: {instead}")


def other_nodes() -> dict[str, str]:
    """Addresses of the living nodes besides this one, by their ids."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}


def ask(node: str, asked: Path) -> Any:
    """A reference to what the node finds of a file."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    return task.options(scheduling_strategy=there).remote(str(asked), str(answer_file(asked, node)))


def look(asked: str, answer: str) -> str:
    """Reads a file and writes its content to another one; returns what went wrong, or "". Runs on a node."""
    deadline = time.monotonic() + SEEN
    while True:
        try:
            Path(answer).write_text(Path(asked).read_text())
            return ""
        except OSError as error:
            if time.monotonic() > deadline:
                return f"{error.strerror or error} there"
            time.sleep(0.2)


def hear(answer: Any, path: Path, deadline: float) -> str:
    """What is wrong with a node by its answer, or ""."""
    try:
        problem: str = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
    except exceptions.GetTimeoutError:
        return f"it did not answer within {ANSWERED:.0f} s"
    except (exceptions.NodeDiedError, exceptions.TaskUnschedulableError):
        return ""  # it has left the cluster
    except exceptions.RayError as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[-1]
    deadline = time.monotonic() + SEEN
    while not problem and not path.exists():
        if time.monotonic() > deadline:
            return "what it writes there is not seen here"
        time.sleep(0.2)
    return problem


def answer_file(asked: Path, node: str) -> Path:
    """Where a node writes its answer."""
    return asked.with_name(f"{asked.name}-{node}")


def leave_sign(folder: Path, session: str) -> None:
    """Writes what `check_sees` looks for: the name of the driver's session, in the sweep's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SIGN, session.encode())


def check_sees(folder: Path, session: str) -> None:
    """Raises UsageError on a node that does not see what the driver of this session wrote in the folder."""
    try:
        seen = (folder / SIGN).read_text() == session
    except OSError:
        seen = False
    if not seen:
        node = ray.get_runtime_context().get_node_id()
        refuse(folder, f"node {node[:8]}", "what the driver writes there is not seen")


def on_this_node() -> dict[str, Any]:
    """Options of Ray tasks that write files of this computer: none unless the cluster has other nodes."""
    if not other_nodes():
        return {}
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    strategy = {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=here, soft=False)}
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    return strategy if resources.get("CPU") else {**strategy, "num_cpus": 0, "memory": FIGURE_BYTES}
