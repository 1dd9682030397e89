"""The sampler a spec asks for: ours, or one of Optuna's."""

from __future__ import annotations

import os

from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage

from optuna_robustloss.distributed.lease import LEASE, machine
from optuna_robustloss.sampler.sampler import GenerationalCmaEsSampler
from optuna_robustloss.sampler.warm_start import Sources
from optuna_robustloss.search.spec import StudySpec
from optuna_robustloss.seeds import derive_seed


def make_sampler(spec: StudySpec, storage: BaseStorage, lease: float = LEASE) -> BaseSampler:
    """Return the sampler of ``spec.sampler``.

    The generational one is the same for every worker. Optuna's ``tpe``, ``random`` and ``gp`` get
    a seed of this process: with a common one, several workers would draw the same points.

    Args:
        spec: of the study.
        storage: in which the spec's source studies are, unless they name their own.
        lease: seconds; see ``GenerationalCmaEsSampler``.

    """
    if spec.sampler == "generational":
        return _generational(spec, storage, lease)
    if spec.sampler == "optuna-cmaes":
        return CmaEsSampler(seed=spec.seed, popsize=spec.popsize, warn_independent_sampling=False)
    seed = derive_seed(spec.seed, "worker", machine(), os.getpid()) % 2**32
    if spec.sampler == "tpe":
        return TPESampler(seed=seed, constant_liar=True)
    return RandomSampler(seed) if spec.sampler == "random" else GPSampler(seed=seed)


def find_sources(spec: StudySpec, storage: str | BaseStorage) -> Sources:
    """Return storage and name of the spec's source studies, by default in ``storage``."""
    return [
        (os.path.expandvars(s.storage) if s.storage else storage, s.study)
        for s in spec.source_studies
    ]


def _generational(spec: StudySpec, storage: BaseStorage, lease: float) -> GenerationalCmaEsSampler:
    space, sources = spec.space, find_sources(spec, storage)
    return GenerationalCmaEsSampler(
        spec.popsize,
        seed=spec.seed,
        x0=None if sources else space.start_point,
        sigma0=None if sources else dict.fromkeys(space.centre, spec.sigma0),
        search_space=space.distributions,
        source_studies=sources,
        lr_adapt=spec.lr_adapt,
        separable=spec.separable,
        max_retry=spec.max_retry,
        lease=lease,
        generations=spec.generations,
        include_start=True,
    )
