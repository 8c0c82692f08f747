"""A search for the settings of a training: trials drawn from `SPACE` by optuna's TPE; those that fall behind are
pruned.

The folder of a search: ``journal.log`` (optuna's record of all trials), ``trials/07`` (the run of a trial) and
``best.json`` (the configuration of the best trial so far, for ``maskkit train --config``). A search that was killed
continues with the trial that was interrupted, from the last save of its run: no trial is repeated.

Paper: Akiba et al., Optuna, KDD 2019 (https://arxiv.org/abs/1907.10902).
"""

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskkit.config import RunConfig, change, to_dict
from maskkit.engine.lock import Lock
from maskkit.engine.run import mix
from maskkit.engine.start import refuse_changes
from maskkit.engine.train import train
from maskkit.errors import MaskkitError, NotFinite
from maskkit.eval.numbers import shown
from maskkit.files import remove_leftovers, write_json
from maskkit.infer.runtimes import require
from maskkit.plain_types import flat
from maskkit.ranges import check_ranges

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial


@dataclass(frozen=True)
class Span:
    """Numbers from ``low`` to ``high``, with ``log`` uniform in their logarithm; with ``times`` they are factors of the
    given value."""

    low: float
    high: float
    log: bool = False
    times: bool = False


SPACE: dict[str, Span | tuple[float, ...]] = {
    "train.lr": Span(0.25, 4, log=True, times=True),
    "train.weight_decay": Span(0.1, 10, log=True, times=True),
    "train.backbone_lr": (0.1, 0.3, 1.0),
    "train.ema": (0.0, 0.99, 0.998),
    "augment.photometric": (False, True),
    "augment.iou_crop": (False, True),
    "augment.expand": Span(1, 4),
    "augment.vertical_flip": (0.0, 0.5),
    "augment.copy_paste": (0.0, 0.3),
}
"""The settings that are searched: a span of numbers, or a list of values. The given value is always possible."""

PATIENT = 0.25
"""Share of a training before which no trial is pruned."""

FIRST = 4
"""Number of trials that are drawn at random before TPE takes over; no trial is pruned before as many have ended."""


@dataclass(frozen=True)
class TuneResult:
    """The best trial of a search."""

    config: RunConfig
    file: Path
    """The file with the configuration: ``best.json``."""
    trial: int
    value: float
    """Its decisive metric."""
    run: Path
    """The folder of its run."""


def tune(
    config: RunConfig,
    out: Path,
    trials: int = 12,
    space: Collection[str] = tuple(SPACE),
    resume: bool = False,
    weights: str | Path | None = None,
    device: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> TuneResult:
    """Train with ``trials`` choices of the settings named in ``space``, the first of them as given in ``config``.

    ``resume`` continues the search in ``out``, or starts it if there is none. ``say`` is called with a line per trial.
    ``weights`` and ``device`` are those of `maskkit.engine.train.train`. Raises `MaskkitError` for whatever the user
    can correct.
    """
    check_ranges(config)
    require("optuna", "tune")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MaskkitError("a search runs in one process; start maskkit tune without torchrun or accelerate launch")
    distributions = {name: _distribution(name, config) for name in _chosen(space, config)}
    lock = Lock(out)
    lock.take()
    try:
        settings = flat(to_dict(config)) | {"space": list(distributions), "weights": str(weights)}
        study = _open_study(out, resume, settings)
        if not study.trials:
            study.enqueue_trial({name: 1.0 if _is_factor(name) else _value(config, name) for name in distributions})
        while (trial := _next_trial(study, distributions, trials, config.train.seed)) is not None:
            _run_trial(study, trial, config, out, weights, device)
            _write_best(study, config, out)
            say(_line(study.trials[trial.number], trials))
        _write_best(study, config, out)  # an earlier process may have been killed before it did
        if not _complete(study):
            raise MaskkitError(f"{out}: none of {trials} trials has a result; their runs are in {out / 'trials'}")
        best, file = study.best_trial, out / "best.json"
        found = applied(config, best.params)
        return TuneResult(found, file, best.number + 1, best.value or 0.0, _folder(out, best.number))
    finally:
        lock.free()


def applied(config: RunConfig, found: Mapping[str, Any]) -> RunConfig:
    """``config`` with the values of a trial, by their dotted names.

    Numbers that were drawn from a `Span` are rounded to three digits; given values stay exactly as they are.
    """
    sections: dict[str, dict[str, Any]] = {}
    for name, value in found.items():
        section, _, field = name.partition(".")
        given = _value(config, name)
        if _is_factor(name):
            value *= given
        if isinstance(SPACE[name], Span) and value != given:
            value = float(f"{value:.3g}")
        sections.setdefault(section, {})[field] = value
    return change(config, **sections)


def _chosen(space: Collection[str], config: RunConfig) -> list[str]:
    """The names of ``space`` in the order of `SPACE`, without those that have no effect. Raises `MaskkitError`."""
    for name in space:
        if name not in SPACE:
            raise MaskkitError(f"--space {name}: is not searched; choose among {', '.join(SPACE)}")
    useless = {name for name in SPACE if _is_factor(name) and not _value(config, name)}
    if config.data.labels != "masks":
        useless.add("augment.copy_paste")
    chosen = [name for name in SPACE if name in space and name not in useless]
    if not chosen:
        raise MaskkitError("--space: nothing is left to search; name more settings")
    return chosen


def _distribution(name: str, config: RunConfig) -> "BaseDistribution":
    """What a setting is drawn from: its entry in `SPACE`, extended by the given value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    among, given = SPACE[name], _value(config, name)
    if isinstance(among, Span):
        low, high = (among.low, among.high) if among.times else (min(among.low, given), max(among.high, given))
        return FloatDistribution(low, high, log=among.log)
    return CategoricalDistribution(list(dict.fromkeys((given, *among))))


def _is_factor(name: str) -> bool:
    among = SPACE[name]
    return isinstance(among, Span) and among.times


def _value(config: RunConfig, name: str) -> Any:
    """The given value of a setting."""
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)


def _open_study(out: Path, resume: bool, facts: Mapping[str, Any]) -> "Study":
    """The search in ``out``. Raises `MaskkitError` for one without ``resume``, with other settings, or damaged."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = out / "journal.log"
    if journal.exists() and not resume:
        raise MaskkitError(
            f"{out} already holds a search; continue it with --resume, or choose another folder with --out"
        )
    remove_leftovers(out)
    _mend(journal)
    try:
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
            study_name="maskkit",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST),
        )
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise MaskkitError(f"{journal}: is damaged ({reason}); choose another folder with --out") from None
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", dict(facts))
    else:
        refuse_changes(journal, before, facts, ("train.workers", "train.save_every", "train.log"))
    return study


def _mend(journal: Path) -> None:
    """Remove what a killed process left: the lock of the journal, and an incomplete last line."""
    with suppress(FileNotFoundError):
        Path(f"{journal}.lock").unlink()
    with suppress(FileNotFoundError), open(journal, "rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _next_trial(
    study: "Study", distributions: Mapping[str, "BaseDistribution"], trials: int, seed: int
) -> "Trial | None":
    """The trial that was interrupted, or a new one; None when all ``trials`` are done.

    What is drawn is a function of the seed, the number of the trial and the results before it.
    """
    import optuna

    known = study.get_trials(deepcopy=False)
    running = [t for t in known if t.state == optuna.trial.TrialState.RUNNING]
    waiting = [t for t in known if t.state == optuna.trial.TrialState.WAITING]
    number = running[0].number if running else len(known) - len(waiting)
    if not running and number >= trials:
        return None
    study.sampler = optuna.samplers.TPESampler(seed=mix(seed, number, 0) % 2**32, n_startup_trials=FIRST)
    trial = optuna.trial.Trial(study, running[0]._trial_id) if running else study.ask()
    for name, among in distributions.items():  # values that were drawn before the interruption are kept
        if isinstance(among, optuna.distributions.CategoricalDistribution):
            trial.suggest_categorical(name, among.choices)
        elif isinstance(among, optuna.distributions.FloatDistribution):
            trial.suggest_float(name, among.low, among.high, log=among.log)
    return trial


def _run_trial(
    study: "Study", trial: "Trial", config: RunConfig, out: Path, weights: str | Path | None, device: str | None
) -> None:
    """Train a trial, or continue it, and record its result."""
    from optuna.trial import TrialState

    folder = _folder(out, trial.number)

    def falls_behind(step: int, total: int, value: float) -> bool:
        if step < PATIENT * total or step == total:
            return False
        if step not in study.trials[trial.number].intermediate_values:  # it is there if the evaluation was repeated
            trial.report(value, step)
        return trial.should_prune()

    if trial.should_prune():  # killed between that evaluation and its record
        study.tell(trial, state=TrialState.PRUNED)
        return
    try:
        again = (folder / "last.safetensors").exists()
        found = train(applied(config, trial.params), folder, again, weights, device, falls_behind)
    except NotFinite as error:
        trial.set_user_attr("failed", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return
    if trial.should_prune():
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, next(iter(found.metrics.values())) or 0.0)


def _folder(out: Path, number: int) -> Path:
    return out / "trials" / f"{number + 1:02}"


def _write_best(study: "Study", config: RunConfig, out: Path) -> None:
    """Write the configuration of the best trial so far."""
    if _complete(study):
        write_json(out / "best.json", to_dict(applied(config, study.best_trial.params)))


def _complete(study: "Study") -> "list[FrozenTrial]":
    """The trials that have a result."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _line(trial: "FrozenTrial", trials: int) -> str:
    """One line about the result of a trial."""
    from optuna.trial import TrialState

    if trial.state == TrialState.FAIL:
        ended = f"failed: {trial.user_attrs.get('failed')}"
    elif trial.state == TrialState.PRUNED:
        ended = f"pruned after step {trial.last_step}, {shown(max(trial.intermediate_values.values()))}"
    else:
        ended = shown(trial.value)
    numbers = {n: f"{v:.3g}" if type(v) is float else v for n, v in trial.params.items()}
    values = ", ".join(f"{n} times {v}" if _is_factor(n) else f"{n} {v}" for n, v in numbers.items())
    return f"trial {trial.number + 1} of {trials}: {ended} ({values})"
