from .audit import CatalogueAudit as CatalogueAudit
from .augment import Augment as Augment
from .dataset import Space_Galaxi as Space_Galaxi
from .loaders import create_train_val_dataloaders as create_train_val_dataloaders
from .loaders import set_epoch as set_epoch
from .simulate import sample_catalogue as sample_catalogue
