"""Weightings: TaskGradients -> task weights. One file per method."""

from evenhand.weighting.aligned_mtl import AlignedMTL
from evenhand.weighting.base import Outcome, Solved, StatefulWeighting, Weighting, Wrapper
from evenhand.weighting.cagrad import CAGrad
from evenhand.weighting.central import CentralDirection
from evenhand.weighting.config import ConFIG
from evenhand.weighting.cr_mogm import CRMOGM
from evenhand.weighting.dualproj import DualProj
from evenhand.weighting.dwa import DWA
from evenhand.weighting.equal import Equal
from evenhand.weighting.every import Every
from evenhand.weighting.excess_mtl import ExcessMTL
from evenhand.weighting.fairgrad import FairGrad
from evenhand.weighting.famo import FAMO
from evenhand.weighting.fixed import Fixed
from evenhand.weighting.gls import GLS
from evenhand.weighting.gradnorm import GradNorm
from evenhand.weighting.gradvac import GradVac
from evenhand.weighting.imtl_g import IMTLG
from evenhand.weighting.imtl_l import IMTLL
from evenhand.weighting.krum import Krum
from evenhand.weighting.mgda import MGDA
from evenhand.weighting.modo import MoDo
from evenhand.weighting.nash_mtl import NashMTL
from evenhand.weighting.normalized import Normalized
from evenhand.weighting.online_min_norm import OnlineMinNorm
from evenhand.weighting.pbi import PBI
from evenhand.weighting.pcgrad import PCGrad
from evenhand.weighting.rlw import RLW
from evenhand.weighting.running import Running
from evenhand.weighting.scale_invariant import ScaleInvariant
from evenhand.weighting.sdmgrad import SDMGrad
from evenhand.weighting.stch import STCH, LogSTCH
from evenhand.weighting.tchebycheff import Tchebycheff
from evenhand.weighting.tension import Tension
from evenhand.weighting.traits import Traits
from evenhand.weighting.uncertainty import Uncertainty
from evenhand.weighting.upgrad import UPGrad

__all__ = [
    "CRMOGM",
    "DWA",
    "FAMO",
    "GLS",
    "IMTLG",
    "IMTLL",
    "MGDA",
    "PBI",
    "RLW",
    "STCH",
    "AlignedMTL",
    "CAGrad",
    "CentralDirection",
    "ConFIG",
    "DualProj",
    "Equal",
    "Every",
    "ExcessMTL",
    "FairGrad",
    "Fixed",
    "GradNorm",
    "GradVac",
    "Krum",
    "LogSTCH",
    "MoDo",
    "NashMTL",
    "Normalized",
    "OnlineMinNorm",
    "Outcome",
    "PCGrad",
    "Running",
    "SDMGrad",
    "ScaleInvariant",
    "Solved",
    "StatefulWeighting",
    "Tchebycheff",
    "Tension",
    "Traits",
    "UPGrad",
    "Uncertainty",
    "Weighting",
    "Wrapper",
]
