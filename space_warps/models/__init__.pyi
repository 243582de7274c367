from .blocks import BlockSpec as BlockSpec
from .blocks import build_block as build_block
from .blocks import register_block as register_block
from .model import Architecture as Architecture
from .model import ProgressiveModel as ProgressiveModel
from .saved_model import load_model as load_model
