"""Weights & Biases, online or, with WANDB_MODE=offline, into the run's folder `wandb`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from distft.plugin import Ending, Tracked, Tracker

PROJECT = "distft"
"""Where WANDB_PROJECT names no other."""


class _Run:
    def __init__(self, run: Tracked) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id,
            name=run.name,
            group=run.study,
            dir=run.run_dir,
            config=dict(run.config),
            allow_val_change=True,
            resume="allow",
            # A process may train several, one after another.
            reinit="create_new",
            # Metrics and configuration only: neither the process's output, nor code, command line,
            # host, or the address of a repository, which may hold a password.
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                silent=True,
            ),
        )
        self.id: str | None = self._run.id

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, ending: Ending, summary: Mapping[str, float]) -> None:
        self._run.summary.update({**summary, "status": ending})
        self._run.finish(exit_code=1 if ending == "failed" else 0)


TRACKER = Tracker(
    name="wandb",
    summary="wandb.ai; with WANDB_MODE=offline the folder wandb of the run directory",
    package="wandb",
    # Its offline file is written in blocks, of which a kill loses the last; online it leaves out
    # the steps it has.
    told_again=True,
    open=_Run,
)
