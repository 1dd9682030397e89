"""CMA-ES for any number of workers, with exact generations replayed from the trials."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_robustloss.distributed.lease import LEASE, LeaseMonitor, fail_trial, lease_keeper
from optuna_robustloss.distributed.trial_io import write_trial
from optuna_robustloss.sampler.allocation import SearchFinished, SlotAllocator
from optuna_robustloss.sampler.assignment import (
    Key,
    TrialAssignment,
    current_owner,
    draw_assignment,
    key_of,
    store_point,
)
from optuna_robustloss.sampler.config import SamplerConfig, load_or_store
from optuna_robustloss.sampler.replay import Generations
from optuna_robustloss.sampler.slots import FAILED, slot_of
from optuna_robustloss.sampler.transform import Widths, numerical_parameters, plain_widths
from optuna_robustloss.sampler.warm_start import Sources
from optuna_robustloss.seeds import derive_seed


class GenerationalCmaEsSampler(BaseSampler):
    """CMA-ES whose generations have exactly ``popsize`` candidates, however many workers ask.

    The state of the optimiser is never stored: each process replays it from the finished trials
    (generation, slot, parameters, value), so that all workers have the same one, bit for bit, and
    nothing in the database is executable. The candidate of a slot is a function of the seed, the
    generation and the slot; after a lost worker another one draws it again, bit for bit the same
    if their processors round alike. The first generation comes from CMA-ES too, whether or not the
    parameters are known beforehand.

    A failed candidate is drawn again ``max_retry`` times and then told as the worst; pruned ones
    rank below all complete ones, in the order of how far they came; enqueued trials take a slot
    and count. CMA-ES is Hansen's with active covariance update ("The CMA Evolution Strategy: A
    Tutorial", 2016), as implemented by ``cmaes``. Parameters that are not numbers are drawn at
    random. For studies with one objective.

    Args:
        popsize: candidates per generation, at least 4.
        seed: of all candidates. By default made from the study's name, so that workers agree.
        x0: start by parameter, in its own units; the centre of the range by default.
        sigma0: first standard deviation in the parameters' own units (natural logarithms for log
            parameters): one number, or by parameter; a sixth of the range by default.
        search_space: all parameters, if they are known before the first trial. Saves a
            transaction per parameter; the objective must suggest them with the same ranges.
        source_studies: estimate the start from the trials of earlier studies with the same
            parameters and direction (Nomura et al. 2021, "Warm Starting CMA-ES", Alg. 1): studies,
            or pairs (storage URL, study name). Takes the place of ``x0`` and ``sigma0``.
        lr_adapt: adapt CMA-ES's learning rates to noise (Nomura et al. 2023, "CMA-ES with Learning
            Rate Adaptation").
        separable: keep the covariance diagonal (Ros and Hansen 2008), for many parameters.
        max_retry: evaluations of a candidate after its first, if its objective fails.
        max_wait: seconds to wait for a generation before ``GenerationTimeoutError``.
        lease: seconds without a heartbeat after which a running trial is failed and its slot is
            free again; the same for all workers.
        generations: stop ``study.optimize``, and raise ``SearchFinished`` from ``study.ask``, when
            so many are complete. No limit by default.
        include_start: make the start itself the first candidate.

    Raises:
        ValueError: an option is out of its range, or two contradict each other; when a study is
            first used: it was begun with other options.

    >>> import optuna
    >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
    >>> study = optuna.create_study(sampler=GenerationalCmaEsSampler(popsize=8, seed=1))
    >>> study.optimize(lambda trial: trial.suggest_float("x", -5, 5) ** 2, n_trials=200)
    >>> study.best_value < 1e-6
    True

    """

    def __init__(
        self,
        popsize: int = 12,
        *,
        seed: int | None = None,
        x0: Mapping[str, float] | None = None,
        sigma0: Widths | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        source_studies: Sources = (),
        lr_adapt: bool = False,
        separable: bool = False,
        max_retry: int = 3,
        max_wait: float = 86400.0,
        lease: float = LEASE,
        generations: int | None = None,
        include_start: bool = False,
    ) -> None:
        if not (max_wait > 0 and lease > 0):
            raise ValueError(f"max_wait and lease are seconds > 0, got {max_wait} and {lease}")
        if generations is not None and generations < 1:
            raise ValueError(f"generations must be at least 1, got {generations}")
        if source_studies and (x0 is not None or sigma0 is not None or separable):
            raise ValueError(
                "source_studies gives the start and a full covariance: leave out x0, sigma0 and "
                "separable"
            )
        space = None
        if search_space is not None:
            space = dict(sorted(numerical_parameters(search_space).items()))
        self._seed = seed
        self._options = SamplerConfig(
            popsize=int(popsize),
            seed=int(seed or 0),
            x0={n: float(v) for n, v in x0.items()} if x0 is not None else None,
            sigma0=plain_widths(sigma0),
            space=space,
            lr_adapt=lr_adapt,
            separable=separable,
            max_retry=max_retry,
            include_start=include_start,
        )
        if space:
            self._options.optimizer(space)  # a wrong start shows here
        self._sources = source_studies
        self._max_wait = max_wait
        self._lease = lease
        self._limit = generations
        self.holds_leases = True
        """Renew the leases of running trials; a worker that does so itself turns this off."""
        self._start_process()

    def _start_process(self) -> None:
        self._lock = threading.RLock()
        self._allocators: dict[Key, SlotAllocator] = {}
        self._assignments: dict[Key, TrialAssignment] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without locks and trials of this process."""
        own = ("_lock", "_allocators", "_assignments")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without trials in another process."""
        self.__dict__.update(state)
        self._start_process()

    def __str__(self) -> str:
        """Return the name and the popsize."""
        return f"GenerationalCmaEsSampler(popsize={self._options.popsize})"

    # Called by workers

    def generations(self, study: Study) -> Generations:
        """Return the generations of a study, replayed from its trials."""
        return self._allocator(study).read()

    def wait(self, study: Study) -> None:
        """Wait for a free slot, which another worker may claim before this one.

        Raises:
            SearchFinished: the last generation is complete.
            GenerationTimeoutError: the generation did not become complete within ``max_wait``.

        """
        self._allocator(study).wait()

    # Called by Optuna

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Allocate a slot to the trial; wait for one if the generation is full."""
        storage, trial_id = study._storage, trial._trial_id
        keeper = lease_keeper(self._lease)
        keeper.hold(storage, trial_id)
        try:
            self._raise_error_if_multi_objective(study)
            assignment = self._assign(study, trial)
            self._assignments[key_of(study, trial.number)] = assignment
            if self._options.space is not None and not assignment.search_finished:
                store_point(study, trial, assignment)
        except BaseException:
            keeper.release(storage, trial_id)
            fail_trial(storage, trial_id)
            raise
        if not self.holds_leases:
            keeper.release(storage, trial_id)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the numerical parameters, if they are known."""
        assignment = self._assignments.get(key_of(study, trial.number))
        return dict(assignment.space or {}) if assignment else {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the candidate of the trial's slot."""
        self._raise_error_if_multi_objective(study)
        assignment = self._assignments.get(key_of(study, trial.number))
        return {n: assignment.point[n] for n in search_space} if assignment else {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter that CMA-ES does not search, or not yet."""
        self._raise_error_if_multi_objective(study)
        assignment = self._assignments.get(key_of(study, trial.number))
        if assignment and assignment.search_finished:
            raise TrialPruned("all generations are complete")
        allocator = self._allocators.get(key_of(study)) or self._allocator(study)
        config = allocator.generations.config
        slot = assignment.slot if assignment else None
        if assignment and assignment.has(param_name, param_distribution):
            return assignment.point[param_name]
        if assignment and slot and assignment.space is None:
            space = numerical_parameters({param_name: param_distribution})
            if param_name in space:
                return config.draw_parameter(slot, param_name, space[param_name])
        of = (slot.generation, slot.index) if slot else (trial.number,)
        seed = derive_seed(config.seed, "independent", *of, param_name) % 2**32
        return RandomSampler(seed).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Mark a failed objective, and release the trial's lease."""
        storage, trial_id = study._storage, trial._trial_id
        lease_keeper(self._lease).release(storage, trial_id)
        assignment = self._assignments.pop(key_of(study, trial.number), None)
        try:
            if state == TrialState.FAIL:
                write_trial(storage, trial_id, {}, {}, FAILED)
        except UpdateFinishedTrialError:
            return  # it was taken over
        slot = assignment.slot if assignment else None
        if self._limit and slot and study._thread_local.in_optimize_loop:
            failed = state == TrialState.FAIL
            if self.generations(study).ends_with(trial, slot, self._limit, failed=failed):
                study.stop()

    def _allocator(self, study: Study) -> SlotAllocator:
        key = key_of(study)
        with self._lock:
            allocator = self._allocators.get(key)
            if allocator is None or allocator.generations.number == 0:
                # Two first workers may have stored different configurations: the last one stands.
                config = load_or_store(study, self._options, self._seed, self._sources)
                if allocator is None or allocator.generations.config != config:
                    allocator = SlotAllocator(
                        study=study,
                        generations=Generations(config, study.direction),
                        keeper=lease_keeper(self._lease),
                        monitor=LeaseMonitor(self._lease),
                        max_wait=self._max_wait,
                        limit=self._limit,
                        held=lambda: self._held_trials(key),
                    )
                    self._allocators[key] = allocator
            return allocator

    def _held_trials(self, study: Key) -> list[int]:
        """Return the numbers of the unfinished trials that the calling thread has asked for."""
        owner = current_owner()
        assignments = list(self._assignments.items())
        return [key[-1] for key, a in assignments if key[:-1] == study and a.owner == owner]

    def _assign(self, study: Study, trial: FrozenTrial) -> TrialAssignment:
        allocator = self._allocator(study)
        slot = slot_of(trial, allocator.generations.config.key)
        if slot is not None:
            allocator.read()  # the trial was asked for before, perhaps elsewhere
        else:
            try:
                slot = allocator.allocate(trial)
            except SearchFinished:
                try:
                    study.stop()  # ``study.optimize`` ends; there is nothing to evaluate
                except RuntimeError:  # ``study.ask``
                    raise SearchFinished(
                        f"study {study.study_name!r}: all {self._limit} generations are complete"
                    ) from None
                return TrialAssignment(None, None, {}, search_finished=True)
        with allocator.lock:
            return draw_assignment(allocator.generations, trial, slot)
