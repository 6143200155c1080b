"""All methods by the names that files and tables call them by."""

from __future__ import annotations

from collections.abc import Mapping

from fedunlearn.methods.badt import BadT
from fedunlearn.methods.fcu import FCU
from fedunlearn.methods.federaser import FedAccum, FedEraser
from fedunlearn.methods.fedosd import FedOSD
from fedunlearn.methods.fedquit import FedQUIT
from fedunlearn.methods.finetune import FineTune
from fedunlearn.methods.freeze import NRFreeze, PFreeze, RFreeze
from fedunlearn.methods.fukd import FUKD
from fedunlearn.methods.ga import GA
from fedunlearn.methods.l1_sparse import L1Sparse
from fedunlearn.methods.mode import MoDE
from fedunlearn.methods.negation import NoT
from fedunlearn.methods.neggrad import NegGradPlus
from fedunlearn.methods.notnot import NotNot
from fedunlearn.methods.perturbation import Perturb
from fedunlearn.methods.pgd import PGD
from fedunlearn.methods.puf import PUF
from fedunlearn.methods.randl import RandL
from fedunlearn.methods.retrain import Retrain
from fedunlearn.methods.salun import SalUn
from fedunlearn.methods.scrub import SCRUB
from fedunlearn.methods.ssd import SSD
from fedunlearn.task import Method

__all__ = ["CATALOGUE"]

CATALOGUE: Mapping[str, type[Method]] = {
    "Retrain": Retrain,
    "FT": FineTune,
    "NoT": NoT,
    "NotNot": NotNot,
    "Perturb": Perturb,
    "FedEraser": FedEraser,
    "FedAccum": FedAccum,
    "FUKD": FUKD,
    "PGD": PGD,
    "MoDE": MoDE,
    "FCU": FCU,
    "PUF": PUF,
    "FedOSD": FedOSD,
    "FedQUIT": FedQUIT,
    "GA": GA,
    "NegGrad+": NegGradPlus,
    "BadT": BadT,
    "SCRUB": SCRUB,
    "RandL": RandL,
    "l1-sparse": L1Sparse,
    "SSD": SSD,
    "SalUn": SalUn,
    "NR-Freeze": NRFreeze,
    "P-Freeze": PFreeze,
    "R-Freeze": RFreeze,
}
