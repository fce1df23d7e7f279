"""Optuna's side of a search: samplers, pruners, and studies that show what the ledger says.

The only file that imports optuna. A study is a projection of the ledger: one trial is one
configuration in one stage of the search, its seeds are replicates. All that it is told comes from
`Told` (sweeper/entries.py), so that a study made anew from the ledger equals the one that was live.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import (
    BaseStorage,
    InMemoryStorage,
    JournalStorage,
    RDBStorage,
    get_storage,
)
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from sweeper.entries import EntryState, Told
from sweeper.errors import UserError
from sweeper.journal import cut_torn_line
from sweeper.search import Direction, Pruner, Search
from sweeper.space import Param, Params, applies

JOURNAL = "journal:"  # what the URL of a journal file begins with; its path follows
UID = "sweep_uid"
# What who shows files beside trials is to raise where there is none of that name.
MissingFileError = ArtifactNotFound
STATES = {
    EntryState.OPEN: TrialState.RUNNING,
    EntryState.COMPLETE: TrialState.COMPLETE,
    EntryState.PRUNED: TrialState.PRUNED,
    EntryState.FAILED: TrialState.FAIL,
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A configuration that the sampler proposes, complete; `number` is its trial's."""

    number: int
    params: Params


class Study:
    """One stage's study in the search's storage; no other process writes to it.

    What it holds is read once, and then known: reading it again takes as long as writing.
    """

    def __init__(
        self, storage: BaseStorage, name: str, search: Search, directions: Sequence[Direction]
    ) -> None:
        """The study of this name, made if there is none; `sync` has to follow."""
        self._storage, self._name, self._search = storage, name, search
        self._directions = directions
        self._shown: list[Told] = []  # by number
        self._ids: list[int] = []  # Optuna's own of its trials, by number
        self._begun: FrozenTrial | None = None  # asked for, but not entered
        self._open()

    def _open(self) -> None:
        self._study = optuna.create_study(
            storage=self._storage,
            study_name=self._name,
            directions=list(self._directions),
            load_if_exists=True,
        )
        self._study.pruner = make_pruner(self._search.pruner)
        self._study.sampler = make_sampler(self._search, len(self.trials()))

    def trials(self) -> list[FrozenTrial]:
        """All trials by number, read anew."""
        return self._study.get_trials(deepcopy=False)

    def optuna_trial(self, number: int) -> optuna.Trial:
        """A trial as Optuna's own tools want it, to write to."""
        return optuna.Trial(self._study, self._ids[number])

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as Optuna's own tools want it."""
        return self._study

    def ask(self) -> Asked:
        """A new configuration, or one that an earlier driver was given and has not entered.

        It is to be shown before the next one is asked for.
        """
        begun, self._begun = self._begun, None
        trial = self._study.ask() if begun is None else optuna.Trial(self._study, begun._trial_id)
        chosen: dict[str, Any] = {}
        for name, param in self._search.space.items():
            if applies(param, chosen):
                fixed = param.value
                chosen[name] = _suggest(trial, name, param) if fixed is None else fixed
        self._ids.append(trial._trial_id)
        self._shown.append(_nothing(trial.number, chosen))
        return Asked(number=trial.number, params=chosen)

    def show(self, told: Told) -> None:
        """Bring one trial to what is told of it; nothing is done where it is so already."""
        if told.number == len(self._shown):
            self._add(told)
            return
        before = self._shown[told.number]
        if told == before or before.state is not EntryState.OPEN:
            return
        identity = self._ids[told.number]
        for place, value in told.intermediate.items():
            if place not in before.intermediate:
                self._storage.set_trial_intermediate_value(identity, place, value)
        for name, fact in told.attributes.items():
            if before.attributes.get(name) != fact:
                self._storage.set_trial_user_attr(identity, name, fact)
        if told.state is not EntryState.OPEN:
            for name, fact in self._as_trial(told).system_attrs.items():
                self._storage.set_trial_system_attr(identity, name, fact)
            # What Study.tell comes to, which reads the whole trial twice; no sampler of these
            # does anything when a trial has ended.
            self._storage.set_trial_state_values(identity, STATES[told.state], _list(told.values))
        self._shown[told.number] = told

    def should_prune(self, number: int) -> bool:
        """Whether Optuna's pruner would end the trial, by what it has reported."""
        return self._study.pruner.prune(self._study, self.trials()[number])

    def sync(self, told: Sequence[Told], uid: str) -> bool:
        """Bring the study to what the ledger says; whether it had to be made anew for that.

        Raises UserError where a study of this name is another sweep's.
        """
        owner, trials = self._study.user_attrs.get(UID), self.trials()
        if owner not in (None, uid) or (owner is None and trials):
            raise UserError(
                f"the search's storage has a study {self._name!r} of another sweep; give this one "
                "another name, or another search.storage"
            )
        anew = not self._agrees(trials, told)
        if anew:
            optuna.delete_study(study_name=self._name, storage=self._storage)
            self._open()
            trials = []
        if UID not in self._study.user_attrs:
            self._study.set_user_attr(UID, uid)
            with _quiet():
                self._study.set_metric_names(list(self._metrics))
        entered, beyond = trials[: len(told)], trials[len(told) :]
        self._ids = [trial._trial_id for trial in entered]
        self._shown = [_seen(trial, each) for trial, each in zip(entered, told, strict=False)]
        self._begun = beyond[0] if beyond else None
        for each in told:
            self.show(each)
        return anew

    def _agrees(self, trials: Sequence[FrozenTrial], told: Sequence[Told]) -> bool:
        """Whether nothing that the storage says has to be taken back."""
        beyond = trials[len(told) :]
        if len(beyond) > 1 or any(trial.state is not TrialState.RUNNING for trial in beyond):
            return False
        return all(
            trial.params == _searched(self._search, each.params)
            and (trial.state is TrialState.RUNNING or trial.state is STATES[each.state])
            and (trial.state is TrialState.RUNNING or trial.values == _list(each.values))
            for trial, each in zip(trials, told, strict=False)
        )

    @property
    def _metrics(self) -> Sequence[str]:
        """What the values are called; in a stage with an objective of its own just "score"."""
        names = self._search.objectives
        return names if len(names) == len(self._directions) else ("score",)

    def _add(self, told: Told) -> None:
        """A trial as if it had been there from the beginning."""
        self._study.add_trial(self._as_trial(told))
        self._ids.append(
            self._storage.get_trial_id_from_study_id_trial_number(
                self._study._study_id, told.number
            )
        )
        self._shown.append(told)

    def _as_trial(self, told: Told) -> FrozenTrial:
        params = _searched(self._search, told.params)
        return create_trial(
            state=STATES[told.state],
            values=told.values,
            params=params,
            distributions={name: distribution(self._search.space[name]) for name in params},
            user_attrs=dict(told.attributes),
            intermediate_values=dict(told.intermediate),
            constraints=dict(told.constraints),
        )


def _nothing(number: int, params: Params) -> Told:
    """What a trial is told when it begins."""
    return Told(
        number=number,
        params=params,
        state=EntryState.OPEN,
        values=None,
        intermediate={},
        constraints={},
        attributes={},
    )


def _seen(trial: FrozenTrial, told: Told) -> Told:
    """What a trial in the storage has been told."""
    state = EntryState.OPEN if trial.state is TrialState.RUNNING else told.state
    return replace(
        _nothing(told.number, told.params),
        state=state,
        intermediate=trial.intermediate_values,
        attributes=trial.user_attrs,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna says of choices that are ours, and that a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _searched(search: Search, params: Params) -> dict[str, Any]:
    """The parameters that Optuna knows: those of one value are none of its business."""
    return {name: value for name, value in params.items() if search.space[name].value is None}


def _list(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def distribution(param: Param) -> BaseDistribution:
    """A parameter as Optuna has it."""
    if param.choices is not None:
        return CategoricalDistribution(param.choices)
    assert param.low is not None
    assert param.high is not None
    if param.is_int:
        return IntDistribution(int(param.low), int(param.high), param.log, int(param.step or 1))
    return FloatDistribution(float(param.low), float(param.high), param.log, param.step)


def _suggest(trial: optuna.Trial, name: str, param: Param) -> Any:
    if param.choices is not None:
        return trial.suggest_categorical(name, param.choices)
    assert param.low is not None
    assert param.high is not None
    if param.is_int:
        step = int(param.step or 1)
        return trial.suggest_int(name, int(param.low), int(param.high), step=step, log=param.log)
    low, high = float(param.low), float(param.high)
    return trial.suggest_float(name, low, high, step=param.step, log=param.log)


def make_sampler(search: Search, tried: int) -> BaseSampler:
    """The sampler of a search that has tried so many configurations.

    A search that goes on draws other numbers than it began with, or it would propose the same.
    """
    seed = (search.seed + tried) % 2**32
    with _quiet():
        match search.sampler:
            case "gp":
                return GPSampler(seed=seed, warn_independent_sampling=False)
            case "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "qmc":
                # The place in its sequence is in the storage; what scrambles it stays the same.
                return QMCSampler(
                    seed=search.seed,
                    scramble=True,
                    warn_asynchronous_seeding=False,
                    warn_independent_sampling=False,
                )
            case "random" | "grid" | "surrogate":  # the last two choose elsewhere
                return RandomSampler(seed=seed)
        conditional = any(param.when for param in search.space.values())
        return TPESampler(seed=seed, multivariate=True, group=conditional, constant_liar=True)


def make_pruner(pruner: Pruner | None) -> BasePruner:
    """Optuna's pruner of a search."""
    if pruner is None:
        return NopPruner()
    match pruner.name:
        case "median":
            return MedianPruner(
                n_startup_trials=pruner.startup_trials, n_warmup_steps=pruner.warmup
            )
        case "successive_halving":
            return SuccessiveHalvingPruner()
    return HyperbandPruner()


# ---- storages


def open_storage(url: str) -> BaseStorage:
    """A storage by its URL: a database as SQLAlchemy writes it, or `journal:PATH`.

    A journal's last line, torn when its writer died, is taken out first. Raises UserError where
    nothing can be opened there.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith(JOURNAL):
        return _open_journal(Path(url.removeprefix(JOURNAL)))
    try:
        storage = RDBStorage(url, skip_compatibility_check=False)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"search.storage {_without_password(url)}: {why}") from error
    if storage.engine.dialect.name == "sqlite":
        _relax(storage.engine)
    return get_storage(storage)


def _relax(engine: sqlalchemy.Engine) -> None:
    """Let others look while it is written, and wait for no disk: it can be made anew."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    engine.dispose()  # connections that were made before


def _open_journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path))
    with _quiet():
        backend = JournalFileBackend(str(path), lock_obj=lock)
    repair_journal(path, lock)
    return JournalStorage(backend)


def repair_journal(path: Path, lock: JournalFileSymlinkLock) -> int:
    """Cut off a torn last line, under the journal's own lock; how many bytes those were."""
    lock.acquire()
    try:
        return cut_torn_line(path)
    finally:
        lock.release()


def open_memory() -> BaseStorage:
    """A storage that ends with this process."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return InMemoryStorage()


def _without_password(url: str) -> str:
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


# ---- importances


def importances(
    search: Search, senses: Sequence[Direction], told: Sequence[Told], share: float
) -> dict[str, float]:
    """How much each parameter tells the best `share` of trials from the others; it sums to 1.

    By PED-ANOVA (Watanabe et al. 2023), from the means of those that have all their seeds; of
    several objectives, to be near the Pareto front.
    """
    study = Study(open_memory(), "importances", search, senses)
    complete = [each for each in told if each.state is EntryState.COMPLETE]
    study.sync([replace(each, number=number) for number, each in enumerate(complete)], UID)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few and of equal ones: who reads a share sees its n
        return dict(get_param_importances(study.optuna_study, evaluator=evaluator))
