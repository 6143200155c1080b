"""Experiment files: what is wrong with one is said by its place, and what is right comes back as it was."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from fedunlearn.data.images import Cropped, Flipped
from fedunlearn.data.partition import Dirichlet, Iid
from fedunlearn.data.treatment import Backdoored, Turned
from fedunlearn.evaluation import published
from fedunlearn.evaluation.stopping import Recovered
from fedunlearn.experiment import Data, Experiment, Keep, Model, Recovery, Training
from fedunlearn.experimentfile import ExperimentError, load, resolved
from fedunlearn.experiments import shipped
from fedunlearn.layers import FIRST
from fedunlearn.methods.catalogue import CATALOGUE
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.negation import Annealing, NoT
from fedunlearn.methods.perturbation import (
    PERTURBATIONS,
    FlipSigns,
    Negate,
    Perturb,
    PruneAndReinitialise,
    Reinitialise,
    RotateOutputs,
    Shrink,
    WhiteNoise,
)
from fedunlearn.methods.retrain import Retrain
from fedunlearn.programs import SGD, Adam, Constant, Cosine, Exponential
from fedunlearn.requests import AnyOf, ForgetClass, ForgetClient, ForgetInstances, ForgetShare

RIGHT = """\
title = "tiny"
seeds = [3]
methods = ["Retrain", "NoT"]

[data]
name = "digits"
clients = 4

[model]
name = "layernorm-cnn"

[training]
rounds = 2
optimizer = { kind = "SGD", lr = 0.05 }

[request]
kind = "Client"
client = "0"

[recovery]
rounds = 1
"""

METHODS = f"{', '.join(CATALOGUE)} or your own as package.module:Class"
HOW = f"{', '.join(list(PERTURBATIONS.kinds)[:-1])} or Shrink"
TOP = (
    "title, data, model, training, request, recovery, story, minutes, published, series, keep, methods, seeds, then, "
    "earlier, left, shadow"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where one stands: so that places are told by name alone, and modules of one's own are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def written(text: str, name: str = "own.toml") -> Path:
    path = Path(name)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def changed(old: str, new: str) -> str:
    assert RIGHT.count(old) == 1, old
    return RIGHT.replace(old, new)


def problems(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    with pytest.raises(ExperimentError) as told:
        load(path, overrides)
    assert str(told.value) == "\n".join(told.value.problems)
    return list(told.value.problems)


def test_what_is_right_becomes_dataclasses(folder: Path) -> None:
    assert load(written(RIGHT)) == Experiment(
        title="tiny",
        data=Data("digits", 4),
        model=Model("layernorm-cnn"),
        training=Training(2, SGD(0.05)),
        request=ForgetClient("0"),
        recovery=Recovery(1),
        methods=(Retrain(), NoT()),
        seeds=(3,),
    )


# What stands in RIGHT, what stands there instead, and what is told about it after "own.toml".
WRONG = [
    # Entries that there are not
    ('title = "tiny"', 'title = ""\ntitel = "tiny"', f":2: titel: is unknown (did you mean title?); there are {TOP}"),
    (
        "[data]",
        "[keep]\nlats = true\n[data]",
        ":6: keep.lats: is unknown (did you mean last?); there are first, last, every",
    ),
    (
        "clients = 4",
        "clinets = 4",
        ":7: data.clinets: is unknown (did you mean clients?); there are name, clients, samples, partition, "
        "validation, treatment, proxy, images",
    ),
    ('name = "layernorm-cnn"', 'name = "a"\nkernel = 3', ":11: model.kernel: is unknown; there are name, options"),
    (
        "rounds = 2",
        "rounds = 2\nepoch = 1",
        ":14: training.epoch: is unknown (did you mean epochs?); there are rounds, optimizer, schedule, epochs, "
        "batch_size, clip, participation",
    ),
    (
        "rounds = 1\n",
        "rounds = 1\nevery = 2\n",
        ":22: recovery.every: is unknown; there are rounds, epochs, evaluate_every, stop, budget",
    ),
    ('client = "0"', 'client = "0"\nlabel = 3', ":19: request.label: is unknown; there is only client"),
    ("lr = 0.05", "rate = 0.05", ":14: training.optimizer.rate: is unknown; there are lr, momentum, weight_decay"),
    (
        "clients = 4",
        'partition = { kind = "Iid", alpha = 1 }',
        ":7: data.partition.alpha: is unknown; there are no entries",
    ),
    (
        "clients = 4",
        'treatment.0 = { kind = "Turned", turns = 1 }',
        ":7: data.treatment.0.turns: is unknown; there is only quarter_turns",
    ),
    (
        '"NoT"]',
        '{ kind = "NoT", layer = "head" }]',
        ":3: methods.1.layer: is unknown (did you mean layers?); there are layers, include_bias, batchnorm, again, "
        "annealing",
    ),
    (
        '"NoT"]',
        '{ kind = "Perturb", how = { kind = "WhiteNoise", sclae = 1 } }]',
        ":3: methods.1.how.sclae: is unknown (did you mean scale?); there is only scale",
    ),
    (
        "rounds = 1\n",
        "rounds = 1\n[recovery.stop]\nkind = 'Recovered'\nflta = 1\n",
        ":24: recovery.stop.flta: is unknown (did you mean flat?); there are margin, flat, window",
    ),
    (
        "rounds = 2",
        'rounds = 2\nschedule = { kind = "Constant", decay = 1 }',
        ":14: training.schedule.decay: is unknown; there are no entries",
    ),
    # Entries that are missing
    ('title = "tiny"\n', "", ": title: is missing"),
    ('[model]\nname = "layernorm-cnn"\n', "", ": model: is missing"),
    ('name = "digits"\n', "", ":5: data.name: is missing"),
    ('name = "layernorm-cnn"\n', "", ":9: model.name: is missing"),
    ("rounds = 2\n", "", ":12: training.rounds: is missing"),
    ("rounds = 1\n", "", ":20: recovery.rounds: is missing"),
    ('client = "0"', "", ":16: request.client: is missing"),
    ('kind = "Client"\nclient = "0"', 'kind = "Class"', ":16: request.label: is missing"),
    ('kind = "Client"\nclient = "0"', 'kind = "Instances"', ":16: request.instances: is missing"),
    ("clients = 4", 'partition = "Dirichlet"', ":7: data.partition.alpha: is missing"),
    ("rounds = 2", 'rounds = 2\nschedule = "Exponential"', ":14: training.schedule.decay: is missing"),
    ('"SGD", lr = 0.05', '"Adam", betas = [0.9]', ":14: training.optimizer.betas.1: is missing"),
    # Values of another type
    ('"tiny"', "3", ':1: title: must be text, not 3: write "3"'),
    ('"tiny"', "1979-05-27", ":1: title: must not be a date or a time: put quotes around 1979-05-27 if it is text"),
    (
        "clients = 4",
        "validation = 07:32:00",
        ":7: data.validation: must not be a date or a time: put quotes around 07:32:00 if it is text",
    ),
    (
        'name = "layernorm-cnn"',
        'name = "a"\noptions.x = [1, 1979-05-27T07:32:00Z]',
        ":11: model.options.x.1: must not be a date or a time: put quotes around 1979-05-27 07:32:00+00:00 if it "
        "is text",
    ),
    ("clients = 4", 'clients = "4"', ':7: data.clients: must be a whole number, not "4"'),
    ("clients = 4", "clients = 4.0", ":7: data.clients: must be a whole number, not 4.0"),
    ("clients = 4", "clients = true", ":7: data.clients: must be a whole number, not true"),
    (
        "clients = 4",
        'samples = "all of them, as many as there are in it"',
        ':7: data.samples: must be a whole number, not "all of them, as many as there are in...',
    ),
    ("clients = 4", 'validation = "0.2"', ':7: data.validation: must be a number, not "0.2"'),
    ("[data]", "[keep]\nfirst = 1\n[data]", ":6: keep.first: must be true or false, not 1"),
    ("seeds = [3]", 'seeds = "3"', ':2: seeds: must be an array, not "3"'),
    ("seeds = [3]", "seeds = [3,\n 4.5]", ":3: seeds.1: must be a whole number, not 4.5"),
    ('["Retrain", "NoT"]', '"NoT"', ':3: methods: must be an array, not "NoT"'),
    ('["Retrain", "NoT"]', '{ kind = "NoT" }', ":3: methods: must be an array, not a table"),
    ("seeds = [3]", "keep = [3]", ":2: keep: must be a table, not [3]"),
    ("[model]", "[[model]]", ':9: model: must be a table, not [{"name": "layernorm-cnn"}]'),
    ('name = "layernorm-cnn"', 'name = "a"\noptions = 3', ":11: model.options: must be a table, not 3"),
    ("clients = 4", 'treatment = ["Turned"]', ':7: data.treatment: must be a table, not ["Turned"]'),
    (
        "clients = 4",
        'treatment = { kind = "Turned", quarter_turns = 1 }',
        ":7: data.treatment.quarter_turns: must be a table whose kind is Turned or Backdoored, not 1",
    ),
    (
        "clients = 4",
        "treatment.0.kind = 'Turned'\ntreatment.0.quarter_turns = 1.5",
        ":8: data.treatment.0.quarter_turns: must be a whole number, not 1.5",
    ),
    ("lr = 0.05", 'lr = "fast"', ':14: training.optimizer.lr: must be a number, not "fast"'),
    ('"SGD", lr = 0.05', '"Adam", betas = 0.9', ":14: training.optimizer.betas: must be an array, not 0.9"),
    (
        '"SGD", lr = 0.05',
        '"Adam", betas = [0.1, 0.2, 0.3]',
        ":14: training.optimizer.betas: must have at most 2 items, not [0.1, 0.2, 0.3]",
    ),
    ('client = "0"', "client = 0", ':18: request.client: must be text, not 0: write "0"'),
    (
        'kind = "Client"\nclient = "0"',
        'kind = "Class"\nlabel = "cat"',
        ':18: request.label: must be a whole number, not "cat"',
    ),
    (
        'kind = "Client"\nclient = "0"',
        'kind = "Instances"\ninstances = [1, 2]',
        ":18: request.instances: must be a table, not [1, 2]",
    ),
    (
        'kind = "Client"\nclient = "0"',
        'kind = "Instances"\ninstances.0 = 1',
        ":18: request.instances.0: must be an array, not 1",
    ),
    (
        'kind = "Client"\nclient = "0"',
        'kind = "Instances"\n[request.instances]\n0 = [\n1,\n"a"]',
        ':21: request.instances.0.1: must be a whole number, not "a"',
    ),
    ('"NoT"]', '{ kind = "NoT", layers = 3 }]', ":3: methods.1.layers: must be text or an array, not 3"),
    ('"NoT"]', '{ kind = "NoT", layers = {} }]', ":3: methods.1.layers: must be text or an array, not a table"),
    ('"NoT"]', '{ kind = "NoT", layers = ["head",\n3] }]', ':4: methods.1.layers.1: must be text, not 3: write "3"'),
    (
        '"NoT"]',
        '{ kind = "NoT", include_bias = "yes" }]',
        ':3: methods.1.include_bias: must be true or false, not "yes"',
    ),
    (
        '"NoT"]',
        '{ kind = "Perturb", how = { kind = "Shrink", keep = "a" } }]',
        ':3: methods.1.how.keep: must be a number, not "a"',
    ),
    # Values out of range
    ("seeds = [3]", "minutes = 0", ":2: minutes: must be greater than 0, not 0"),
    ("seeds = [3]", "keep.every = 0", ":2: keep.every: must be greater than or equal to 1, not 0"),
    ("clients = 4", "clients = 0", ":7: data.clients: must be greater than or equal to 1, not 0"),
    ("clients = 4", "samples = 0", ":7: data.samples: must be greater than or equal to 1, not 0"),
    ("clients = 4", "validation = -0.1", ":7: data.validation: must be greater than or equal to 0, not -0.1"),
    ("clients = 4", "validation = 1.0", ":7: data.validation: must be less than 1, not 1.0"),
    ("rounds = 2", "rounds = 0", ":13: training.rounds: must be greater than or equal to 1, not 0"),
    ("rounds = 2", "rounds = 2\nepochs = 0.0", ":14: training.epochs: must be greater than 0, not 0.0"),
    ("rounds = 2", "rounds = 2\nbatch_size = 0", ":14: training.batch_size: must be greater than or equal to 1, not 0"),
    ("rounds = 2", "rounds = 2\nclip = -1", ":14: training.clip: must be greater than 0, not -1"),
    ("rounds = 1\n", "rounds = 0\n", ":21: recovery.rounds: must be greater than or equal to 1, not 0"),
    (
        "rounds = 1\n",
        "rounds = 1\nevaluate_every = 0\n",
        ":22: recovery.evaluate_every: must be greater than or equal to 1, not 0",
    ),
    ("lr = 0.05", "lr = -0.05", ":14: training.optimizer.lr: must be greater than 0, not -0.05"),
    ("lr = 0.05", "momentum = -0.9", ":14: training.optimizer.momentum: must be greater than or equal to 0, not -0.9"),
    (
        "lr = 0.05",
        "weight_decay = -0.1",
        ":14: training.optimizer.weight_decay: must be greater than or equal to 0, not -0.1",
    ),
    ('"SGD", lr = 0.05', '"Adam", lr = 0.0', ":14: training.optimizer.lr: must be greater than 0, not 0.0"),
    (
        '"SGD", lr = 0.05',
        '"Adam", weight_decay = -0.1',
        ":14: training.optimizer.weight_decay: must be greater than or equal to 0, not -0.1",
    ),
    ('"SGD", lr = 0.05', '"Adam", betas = [0.9, 1.0]', ":14: training.optimizer.betas.1: must be less than 1, not 1.0"),
    (
        "rounds = 2",
        'rounds = 2\nschedule = { kind = "Cosine", rounds = 0 }',
        ":14: training.schedule.rounds: must be greater than 0, not 0",
    ),
    (
        "rounds = 2",
        'rounds = 2\nschedule = { kind = "Cosine", rounds = 1, floor = -0.5 }',
        ":14: training.schedule.floor: must be greater than or equal to 0, not -0.5",
    ),
    (
        "rounds = 2",
        'rounds = 2\nschedule = { kind = "Exponential", decay = 0.0 }',
        ":14: training.schedule.decay: must be greater than 0, not 0.0",
    ),
    (
        "clients = 4",
        'partition = { kind = "Dirichlet", alpha = 0 }',
        ":7: data.partition: alpha must be positive and finite, not 0.0",
    ),
    (
        "clients = 4",
        'partition = { kind = "Dirichlet", alpha = 1, minimum = -1 }',
        ":7: data.partition: the minimum of samples per client must be 0 or more, not -1",
    ),
    (
        "clients = 4",
        'treatment.0 = { kind = "Turned", quarter_turns = 5 }',
        ":7: data.treatment.0: images are turned by 1, 2 or 3 quarters, not 5",
    ),
    (
        "clients = 4",
        'treatment.0 = { kind = "Backdoored", share = 80, label = 0 }',
        ":7: data.treatment.0: the share of poisoned samples must be in (0, 1], not 80.0",
    ),
    ("clients = 4", 'treatment.0 = { kind = "Backdoored", label = 0 }', ":7: data.treatment.0.share: is missing"),
    (
        "clients = 4",
        'images = "Crop"',
        ':7: data.images: must be Cropped or Flipped (did you mean Cropped?), not "Crop"',
    ),
    (
        "clients = 4",
        'images = { kind = "Cropped", resize = 200 }',
        ":7: data.images: a square of 224 cannot be cut from 200: crop must be 1 .. resize",
    ),
    (
        "rounds = 1\n",
        'rounds = 1\nepochs = 2\nbudget = "all"\n',
        ':20: recovery: budget "all" compares methods at the same number of epochs: leave recovery.epochs out',
    ),
    (
        "rounds = 1\n",
        'rounds = 1\nstop = { kind = "Recovered", window = 1 }\n',
        ":22: recovery.stop: window must be 2 scored rounds or more, not 1",
    ),
    (
        "rounds = 1\n",
        'rounds = 1\nstop = { kind = "Recovered", margin = -1 }\n',
        ":22: recovery.stop: margin and flat are points of accuracy, 0 or more, not -1.0 and 1.0",
    ),
    (
        '"NoT"]',
        '{ kind = "NoT", batchnorm = "negate" }]',
        ":3: methods.1.batchnorm: must be 'negate_mean', 'leave' or 'recalibrate', not \"negate\"",
    ),
    (
        '"NoT"]',
        '{ kind = "Perturb", how = { kind = "FlipSigns", share = 2 } }]',
        ":3: methods.1.how: share must be between 0 and 1, not 2.0",
    ),
    # Numbers that are none
    ("seeds = [3]", "minutes = inf", ":2: minutes: must be a finite number, not inf"),
    ("clients = 4", "clients = nan", ":7: data.clients: must be a finite number, not nan"),
    ("lr = 0.05", "lr = nan", ":14: training.optimizer.lr: must be a finite number, not nan"),
    ("lr = 0.05", "lr = -inf", ":14: training.optimizer.lr: must be a finite number, not -inf"),
    (
        "rounds = 1\n",
        'rounds = 1\nstop = { kind = "Recovered", margin = nan }\n',
        ":22: recovery.stop.margin: must be a finite number, not nan",
    ),
    (
        "rounds = 1\n",
        'rounds = 1\nstop = { kind = "Recovered", flat = inf }\n',
        ":22: recovery.stop.flat: must be a finite number, not inf",
    ),
    (
        'name = "layernorm-cnn"',
        'name = "a"\noptions = { x = [0.0, nan] }',
        ":11: model.options.x.1: must be a finite number, not nan",
    ),
    # Kinds
    ("clients = 4", 'partition = "iid"', ':7: data.partition: must be Iid or Dirichlet (did you mean Iid?), not "iid"'),
    (
        "clients = 4",
        'treatment.0 = "Turn"',
        ':7: data.treatment.0: must be Turned or Backdoored (did you mean Turned?), not "Turn"',
    ),
    ('"SGD"', '"SDG"', ':14: training.optimizer.kind: must be SGD or Adam (did you mean SGD?), not "SDG"'),
    ('"SGD"', '"own:Optimizer"', ':14: training.optimizer.kind: must be SGD or Adam, not "own:Optimizer"'),
    (
        "rounds = 2",
        'rounds = 2\nschedule = "Linear"',
        ':14: training.schedule: must be Constant, Cosine or Exponential, not "Linear"',
    ),
    (
        '"Client"',
        '"Clients"',
        ':17: request.kind: must be Client, Class, Instances or Share (did you mean Client?), not "Clients"',
    ),
    ("rounds = 1\n", 'rounds = 1\nstop = "Oracle"\n', ':22: recovery.stop: must be Recovered, not "Oracle"'),
    ('"NoT"]', '"Not"]', f':3: methods.1: must be {METHODS} (did you mean NoT?), not "Not"'),
    ('kind = "Client"\n', "", ":16: request: has no kind, which must be Client, Class, Instances or Share"),
    ('"NoT"]', '{ layers = "head" }]', f":3: methods.1: has no kind, which must be {METHODS}"),
    ('"Client"', "true", ":17: request.kind: must be Client, Class, Instances or Share, not true"),
    ('"NoT"]', '{ kind = ["NoT"] }]', f':3: methods.1.kind: must be {METHODS} (did you mean NoT?), not ["NoT"]'),
    ("clients = 4", "partition = 0.5", ":7: data.partition: must be a table whose kind is Iid or Dirichlet, not 0.5"),
    ('"NoT"]', "[1]]", f":3: methods.1: must be a table whose kind is {METHODS}, not [1]"),
    (
        '"NoT"]',
        '{ kind = "Perturb", how = "Whitenoise" }]',
        f':3: methods.1.how: must be {HOW} (did you mean WhiteNoise?), not "Whitenoise"',
    ),
    (
        '"NoT"]',
        '{ kind = "Perturb", how = { scale = 1 } }]',
        f":3: methods.1.how: has no kind, which must be {HOW}",
    ),
    ('"NoT"]', '{ kind = "Perturb", how = 3 }]', f":3: methods.1.how: must be a table whose kind is {HOW}, not 3"),
    (
        '"NoT"]',
        '{ kind = "Perturb", how = "own:Scramble" }]',
        f':3: methods.1.how: must be {HOW}, not "own:Scramble"',
    ),
    # Kinds of one's own
    (
        '"NoT"]',
        '"no.module:X"]',
        ":3: methods.1: there is no module 'no', for 'no.module:X': install it, or start from the directory it is in",
    ),
    (
        '"NoT"]',
        '{ kind = "fedunlearn.task:Task" }]',
        ":3: methods.1.kind: fedunlearn.task:Task is no dataclass that subclasses fedunlearn.task.Method",
    ),
    (
        '"NoT"]',
        '"fedunlearn.task:Metod"]',
        ":3: methods.1: module 'fedunlearn.task' has no 'Metod' (did you mean Method?)",
    ),
    ('"NoT"]', '"fedunlearn.task:"]', ":3: methods.1: write 'fedunlearn.task:' as 'package.module:name'"),
    # Values that do not go together, and names
    ("seeds = [3]", "seeds = [3, 4, 3]", ":2: seeds: must differ from one another"),
    ("seeds = [3]", "seeds = []", ":2: seeds: must have at least 1 item, not []"),
    ('["Retrain", "NoT"]', '["FT", "NoT"]', ":3: methods: must hold Retrain, the reference of the average gap"),
    ('["Retrain", "NoT"]', "[]", ":3: methods: must hold Retrain, the reference of the average gap"),
    (
        '"NoT"]',
        '"NoT", { kind = "NoT" }]',
        ":3: methods: must differ from one another: leave out what stands twice, or give it other entries",
    ),
    (
        '"NoT"]',
        '"NoT", "fedunlearn.methods.negation:NoT"]',
        ":3: methods: must differ from one another: leave out what stands twice, or give it other entries",
    ),
    (
        "seeds = [3]",
        'published = "table-1/cifar"',
        f":2: published: the paper has no 'table-1/cifar': take one of {', '.join(published.names())}",
    ),
    ("seeds = [3]", "published = 1", ':2: published: must be text, not 1: write "1"'),
    # No TOML, and nothing to extend
    ("[data]", "[data", ":5: is no TOML: Expected ']' at the end of a table declaration"),
    ("clients = 4", 'name = "twice"', ":7: is no TOML: Cannot overwrite a value"),
    ("rounds = 1\n", 'rounds = """1\n\n', ":21: is no TOML: Unterminated string"),
    ("seeds = [3]", "extends = 3", ":2: extends names one other file, not 3"),
    ("seeds = [3]", 'extends = "own.toml"', ":2: extends 'own.toml' goes round in a circle"),
    (
        "seeds = [3]",
        'extends = "quickstar"',
        f":2: extends names 'quickstar', but there is no quickstar: give a file, or one of {', '.join(shipped())}",
    ),
]


@pytest.mark.parametrize(("old", "new", "says"), WRONG)
def test_what_is_wrong_is_said_with_its_place(folder: Path, old: str, new: str, says: str) -> None:
    assert problems(written(changed(old, new))) == [f"own.toml{says}"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training"], "--set training: write KEY=VALUE, such as training.rounds=20"),
        (["title.x=1"], "--set title.x=1: title is no table: set it as a whole"),
        (["methods.2=FT"], "--set methods.2=FT: methods has no element 2: they are 0 to 1"),
        (["methods.1.layers=head"], "--set methods.1.layers=head: methods.1 is no table: set it as a whole"),
        (
            ["training.rounds=0"],
            "--set training.rounds=0: training.rounds: must be greater than or equal to 1, not 0",
        ),
        (
            ["training.rounds=many"],
            '--set training.rounds=many: training.rounds: must be a whole number, not "many"',
        ),
        (
            ["recovery.stop.window=4"],
            "--set recovery.stop.window=4: recovery.stop: has no kind, which must be Recovered",
        ),
        (
            ["seeds=[1, 2]", "seeds.1=1.5"],
            "--set seeds.1=1.5: seeds.1: must be a whole number, not 1.5",
        ),
        (
            ["training.optimizer={ kind = 'Adam', momentum = 0.9 }"],
            "--set training.optimizer={ kind = 'Adam', momentum = 0.9 }: training.optimizer.momentum: is unknown; "
            "there are lr, betas, weight_decay",
        ),
        (["modle.name=a"], f"--set modle.name=a: modle: is unknown (did you mean model?); there are {TOP}"),
        (["training.optimizer.kind=Adam", "training.rounds=x", "training.rounds=2", "training.clip=0"], None),
    ],
)
def test_what_is_wrong_with_an_override_is_said_with_it(folder: Path, overrides: list[str], says: str | None) -> None:
    expected = says or "--set training.clip=0: training.clip: must be greater than 0, not 0"
    assert problems(written(RIGHT), overrides) == [expected]


def test_an_override_gives_what_the_file_would(folder: Path) -> None:
    overrides = ["seeds=[7, 8]", "training.optimizer=Adam", "methods.1={kind='NoT', layers='head'}", "title=2 words"]
    plan = load(written(RIGHT), overrides)
    changes: dict[str, Any] = {"title": "2 words", "seeds": (7, 8), "methods": (Retrain(), NoT("head"))}
    before = load(Path("own.toml"))
    assert plan == dataclasses.replace(before, training=Training(2, Adam()), **changes)


@pytest.mark.parametrize("name", ["quickstar", ".", "no.toml"])
def test_an_experiment_that_is_not_there(folder: Path, name: str) -> None:
    known = ", ".join(shipped())
    assert problems(Path(name)) == [f"there is no experiment '{name}': give a TOML file, or one of {known}"]


def test_all_that_is_wrong_is_told_in_the_order_of_its_lines(folder: Path) -> None:
    text = """\
    seeds = [1, "b",
      1.5]
    methods = ["Retrain",
      "Not", { kind = "NoT", layers = {} },
    ]
    [recovery]
    rounds = 0
    stop = { kind = "Recovered", margin = "a", flat = nan }
    [data]
    clients = 0
    treatment.0 = { kind = "Turned", quarter_turns = 0 }
    treatment.b = "Upside"
    partition = { kind = "Dirichlet", beta = 1.0 }
    [request]
    kind = "Client"
    client = 0
    [model]
    nam = "cnn"
    [trainin]
    """
    assert problems(written(text)) == [
        "own.toml: title: is missing",
        "own.toml: training: is missing",
        'own.toml:1: seeds.1: must be a whole number, not "b"',
        "own.toml:2: seeds.2: must be a whole number, not 1.5",
        f'own.toml:4: methods.1: must be {METHODS} (did you mean NoT?), not "Not"',
        "own.toml:4: methods.2.layers: must be text or an array, not a table",
        "own.toml:7: recovery.rounds: must be greater than or equal to 1, not 0",
        'own.toml:8: recovery.stop.margin: must be a number, not "a"',
        "own.toml:8: recovery.stop.flat: must be a finite number, not nan",
        "own.toml:9: data.name: is missing",
        "own.toml:10: data.clients: must be greater than or equal to 1, not 0",
        "own.toml:11: data.treatment.0: images are turned by 1, 2 or 3 quarters, not 0",
        'own.toml:12: data.treatment.b: must be Turned or Backdoored, not "Upside"',
        "own.toml:13: data.partition.alpha: is missing",
        "own.toml:13: data.partition.beta: is unknown; there are alpha, minimum",
        'own.toml:16: request.client: must be text, not 0: write "0"',
        "own.toml:17: model.name: is missing",
        "own.toml:18: model.nam: is unknown (did you mean name?); there are name, options",
        f"own.toml:19: trainin: is unknown (did you mean training?); there are {TOP}",
    ]


def test_each_mistake_is_told_with_the_file_it_is_in(folder: Path) -> None:
    base = changed("clients = 4", "clients = 0").replace("rounds = 2", "rounds = 0").replace("rounds = 1", "rounds = 0")
    written(base, "base.toml")
    own = """\
    extends = "base.toml"
    [training]
    epochs = 0
    [data]
    validation = 2
    [request]
    kind = "Class"
    """
    assert problems(written(own), ["recovery.rounds=-1", "model.depth=3"]) == [
        "base.toml:7: data.clients: must be greater than or equal to 1, not 0",
        "base.toml:13: training.rounds: must be greater than or equal to 1, not 0",
        "own.toml:3: training.epochs: must be greater than 0, not 0",
        "own.toml:5: data.validation: must be less than 1, not 2",
        "own.toml:6: request.label: is missing",
        "--set recovery.rounds=-1: recovery.rounds: must be greater than or equal to 1, not -1",
        "--set model.depth=3: model.depth: is unknown; there are name, options",
    ]


def test_a_file_gives_only_what_differs_from_a_shipped_one(folder: Path) -> None:
    plan = load(written('extends = "quickstart"\n[training]\nrounds = 7\noptimizer = { kind = "Adam" }\n'))
    shipped_one = load("quickstart")
    training = dataclasses.replace(shipped_one.training, rounds=7, optimizer=Adam())
    assert plan == dataclasses.replace(shipped_one, training=training)


def any_of(kind: Any, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with any of these fields, and the others as they are by default."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: kind(**given))


texts = st.text(max_size=12)
counts = st.integers(1, 10**6)
positive = st.floats(0, 1e6, exclude_min=True)
not_negative = st.floats(0, 1e6)
sayable = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
)
data = st.builds(
    Data,
    name=texts,
    clients=st.integers(1, 100),
    samples=st.none() | counts,
    partition=st.just(Iid()) | st.builds(Dirichlet, positive, st.integers(0, 100)),
    validation=st.floats(0, 1, exclude_max=True),
    treatment=st.dictionaries(
        texts,
        st.builds(Turned, st.sampled_from([1, 2, 3]))
        | st.builds(Backdoored, st.floats(0, 1, exclude_min=True), st.integers()),
        max_size=3,
    ),
    images=st.none() | st.just(Flipped()) | st.builds(Cropped, st.integers(9, 99), st.integers(1, 9), st.booleans()),
)
optimizers = any_of(SGD, lr=positive, momentum=st.floats(0, 1), weight_decay=not_negative) | any_of(
    Adam, lr=positive, betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)), weight_decay=not_negative
)
schedules = st.just(Constant()) | st.builds(Exponential, positive) | st.builds(Cosine, counts, st.floats(0, 1))
training = st.builds(
    Training,
    rounds=counts,
    participation=st.floats(0, 1, exclude_min=True),
    optimizer=optimizers,
    schedule=schedules,
    epochs=positive,
    batch_size=counts,
    clip=st.none() | positive,
)
positions = st.lists(st.integers(0, 1000), max_size=3).map(tuple)
single_requests = (
    st.builds(ForgetClient, texts)
    | st.builds(ForgetClass, st.integers())
    | st.builds(ForgetInstances, st.dictionaries(texts, positions, max_size=3))
    | st.builds(ForgetShare, st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(0, 9))
)
requests = single_requests | st.lists(single_requests, min_size=2, max_size=3).map(lambda some: AnyOf(tuple(some)))
several_requests = st.lists(requests, max_size=2).map(tuple)
recovery = st.builds(
    Recovery,
    rounds=counts,
    evaluate_every=counts,
    budget=st.sampled_from(["recovery", "all"]),
    stop=any_of(Recovered, margin=not_negative, flat=not_negative, window=st.integers(2, 100)),
)
names = st.sampled_from(["head", "conv[0:2]", "layers.*"])
negations = any_of(
    NoT,
    layers=names | st.lists(names, max_size=3),
    include_bias=st.booleans(),
    batchnorm=st.sampled_from(["negate_mean", "leave", "recalibrate"]),
    again=st.sampled_from(["same", "other", "none"]),
    annealing=st.builds(Annealing, positive, not_negative, counts),
)
perturbations = st.builds(
    Perturb,
    st.sampled_from([Negate(), Reinitialise(), RotateOutputs()])
    | st.builds(WhiteNoise, not_negative)
    | st.builds(PruneAndReinitialise, st.floats(0, 1))
    | any_of(Shrink, keep=not_negative, fresh=not_negative),
    layers=st.just(FIRST) | names | st.lists(names, max_size=3),
    include_bias=st.booleans(),
    recalibrate=st.booleans(),
)
methods = st.lists(negations | perturbations | st.just(FineTune()), max_size=4, unique_by=repr).flatmap(
    lambda others: st.permutations([Retrain(), *others]).map(tuple)
)
experiments = st.builds(
    Experiment,
    title=texts,
    data=data,
    model=st.builds(Model, texts, st.dictionaries(texts, sayable, max_size=3)),
    training=training,
    request=requests,
    recovery=recovery,
    story=texts,
    minutes=st.none() | positive,
    published=st.none() | st.sampled_from(published.names()),
    keep=st.builds(Keep, st.booleans(), st.just(True), st.none() | counts),
    then=several_requests,
    left=st.lists(texts, max_size=2, unique=True).map(tuple),
    methods=methods,
    seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4, unique=True).map(tuple),
)


@settings(deadline=None)
@given(plan=experiments)
def test_an_experiment_that_is_written_is_the_same_when_it_is_read(
    plan: Experiment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.toml"
    path.write_bytes(tomli_w.dumps(resolved(plan)).encode())
    assert load(path) == plan


def test_an_array_of_requests_is_all_of_them_at_once(folder: Path) -> None:
    one = '[request]\nkind = "Client"\nclient = "0"\n'
    assert RIGHT.count(one) == 1
    several = 'request = [{ kind = "Client", client = "0" }, { kind = "Share", share = 0.1 }]\n'
    plan = load(written(several + RIGHT.replace(one, "")))
    assert plan.request == AnyOf((ForgetClient("0"), ForgetShare(0.1)))
    alone = load(written('request = [{ kind = "Class", label = 1 }]\n' + RIGHT.replace(one, "")))
    assert alone.request == ForgetClass(1)


@pytest.mark.parametrize(
    ("said", "tells"),
    [
        ("[]", ":1: request: must name one request at least"),
        ('[{ kind = "Client" }]', ":1: request.0.client: is missing"),
        ('[{ kind = "Class", label = 1 }, 3]', ":1: request.1: must be a table whose kind is "),
        ('[{ kind = "Share", share = 1 }]', ":1: request.0.share: must be less than 1, not 1"),
    ],
)
def test_what_is_wrong_with_one_of_several_requests(folder: Path, said: str, tells: str) -> None:
    text = RIGHT.replace('[request]\nkind = "Client"\nclient = "0"\n', "")
    (told,) = problems(written(f"request = {said}\n{text}"))
    assert told.startswith(f"own.toml{tells}")


def test_requests_that_follow_one_another_are_an_experiment_each(folder: Path) -> None:
    then = (
        'then = [{ kind = "Client", client = "1" }, [{ kind = "Client", client = "2" }, { kind = "Class", label = 1 }]]'
    )
    plan = load(written(f"{then}\n{RIGHT}"))
    first, second, third = plan.stages
    assert [stage.then for stage in plan.stages] == [(), (), ()]
    assert (first.earlier, first.request, first.forgotten) == ((), ForgetClient("0"), ForgetClient("0"))
    assert (second.earlier, second.request) == ((ForgetClient("0"),), ForgetClient("1"))
    assert second.forgotten == AnyOf((ForgetClient("0"), ForgetClient("1")))
    assert third.earlier == (ForgetClient("0"), ForgetClient("1"))
    assert third.request == AnyOf((ForgetClient("2"), ForgetClass(1)))
    assert plan.total_rounds == 3 * first.total_rounds
    assert first.stages == (first,)
    (told,) = problems(written(f"{then}\n{RIGHT}"), ["keep.last=false"])
    assert told == (
        "--set keep.last=false: keep.last: must be true where requests follow (then): each method goes on from the "
        "model that it has left"
    )
    with pytest.raises(ValueError, match=r"^keep\.last must be true where requests follow"):
        _ = replace(plan, keep=Keep(last=False)).stages
    (told,) = problems(written(tomli_w.dumps(resolved(second))))
    assert "earlier: is written by a run whose requests follow one another" in told
    (told,) = problems(written(f'left = ["0", "0"]\n{RIGHT}'))
    assert told == "own.toml:1: left: must differ from one another"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_experiment_is_the_same_once_it_is_resolved(folder: Path, name: str) -> None:
    plan = load(name)
    assert load(written(tomli_w.dumps(resolved(plan)))) == plan


def test_perturbations_are_read_by_their_kinds_and_told_apart_by_what_is_peculiar_to_each(folder: Path) -> None:
    others = """"Perturb",
      { kind = "Perturb", how = "FlipSigns" }, { kind = "Perturb", how = { kind = "FlipSigns", share = 1 } },
      { kind = "Perturb", how = { kind = "Shrink", fresh = 0.1 }, layers = ["conv1", "head"], recalibrate = true },
      { kind = "Perturb", how = "Shrink", layers = "*" }]"""
    plan = load(written(changed('"NoT"]', others)))
    assert plan.methods[1:] == (
        Perturb(Negate()),
        Perturb(FlipSigns()),
        Perturb(FlipSigns(1)),
        Perturb(Shrink(fresh=0.1), ["conv1", "head"], recalibrate=True),
        Perturb(Shrink(), "*"),
    )
    assert plan.labels[1:] == (
        "Negate",
        "FlipSigns",
        "FlipSigns(share=1.0)",
        "Shrink(fresh=0.1, layers=['conv1', 'head'], recalibrate=True)",
        "Shrink(layers=*)",
    )
    assert resolved(plan)["methods"][3] == {
        "kind": "Perturb",
        "how": {"kind": "FlipSigns", "share": 1.0},
        "include_bias": False,
        "recalibrate": False,
    }


def test_what_is_resolved_leaves_nothing_to_defaults(folder: Path) -> None:
    assert resolved(load(written(RIGHT))) == {
        "title": "tiny",
        "story": "",
        "seeds": [3],
        "then": [],
        "earlier": [],
        "left": [],
        "methods": [
            {"kind": "Retrain"},
            {"kind": "NoT", "include_bias": False, "batchnorm": "negate_mean", "again": "other"},
        ],
        "data": {
            "name": "digits",
            "clients": 4,
            "partition": {"kind": "Iid"},
            "validation": 0.2,
            "treatment": {},
            "proxy": 0,
        },
        "model": {"name": "layernorm-cnn", "options": {}},
        "training": {
            "rounds": 2,
            "optimizer": {"kind": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
            "schedule": {"kind": "Constant"},
            "epochs": 1.0,
            "batch_size": 64,
            "participation": 1.0,
        },
        "request": {"kind": "Client", "client": "0"},
        "recovery": {
            "rounds": 1,
            "evaluate_every": 5,
            "stop": {"kind": "Recovered", "margin": 1.0, "flat": 1.0, "window": 3},
            "budget": "recovery",
        },
        "keep": {"first": True, "last": True},
        "series": {},
    }


OWN = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedunlearn.needs import Needs
from fedunlearn.task import Method

if TYPE_CHECKING:
    from fedunlearn.layers import Selection


@dataclass(frozen=True)
class Shrink(Method):
    factor: float = 0.4
    layers: tuple[str, ...] = ()
    needs = Needs()

    def __post_init__(self):
        if self.factor == 1:
            raise ValueError("factor 1 {changes} nothing: it should be less")

    def unlearn(self, task, resume=None):
        return iter(())


@dataclass(frozen=True)
class Unfinished(Method):
    needs = Needs()


@dataclass(frozen=True)
class Unreadable(Shrink):
    inner: Method | None = None


@dataclass(frozen=True)
class Unimported(Shrink):
    which: Selection = ""


class Plain(Method):
    pass
"""


@pytest.fixture
def own(folder: Path) -> str:
    """The name of a module with methods."""
    written(OWN, "own_methods_of_a_file.py")
    return "own_methods_of_a_file"


def test_a_method_of_ones_own_is_read_and_named_so_that_it_is_read_again(own: str) -> None:
    entries = f'{{ kind = "{own}:Shrink", factor = 0.5, layers = ["a", "b"] }}'
    plan = load(written(changed('"NoT"]', f'"{own}:Shrink", {entries}]')))
    module = sys.modules[own]
    assert plan.methods == (Retrain(), module.Shrink(), module.Shrink(0.5, ("a", "b")))
    assert resolved(plan)["methods"][1:] == [
        {"kind": f"{own}:Shrink", "factor": 0.4, "layers": []},
        {"kind": f"{own}:Shrink", "factor": 0.5, "layers": ["a", "b"]},
    ]
    assert load(written(tomli_w.dumps(resolved(plan)), "again.toml")) == plan


UNREADABLE = (
    "has a field whose type no file can give, or is imported under TYPE_CHECKING: "
    "let it be str, int, float, bool, or a list or mapping of these"
)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ('kind = "OWN:Shrink", factor = "a"', '.factor: must be a number, not "a"'),
        ('kind = "OWN:Shrink", layers = "a"', '.layers: must be an array, not "a"'),
        ('kind = "OWN:Shrink", factr = 1', ".factr: is unknown (did you mean factor?); there are factor, layers"),
        ('kind = "OWN:Shrink", factor = 1', ": factor 1 {changes} nothing: it should be less"),
        ('kind = "OWN:Shrnk"', ".kind: module 'OWN' has no 'Shrnk' (did you mean Shrink?)"),
        ('kind = "OWN:Unfinished"', ".kind: OWN:Unfinished lacks unlearn, as every method must have"),
        ('kind = "OWN:Plain"', ".kind: OWN:Plain is no dataclass that subclasses fedunlearn.task.Method"),
        ('kind = "OWN:Unreadable"', f": OWN:Unreadable {UNREADABLE}"),
        ('kind = "OWN:Unimported"', f": OWN:Unimported {UNREADABLE}"),
    ],
)
def test_what_is_wrong_with_a_method_of_ones_own(own: str, entries: str, says: str) -> None:
    path = written(changed('"NoT"]', f"{{ {entries.replace('OWN', own)} }}]"))
    assert problems(path) == [f"own.toml:3: methods.1{says.replace('OWN', own)}"]
