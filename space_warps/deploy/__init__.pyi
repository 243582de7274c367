from .inference import InferenceModel as InferenceModel
from .outliers import OutlierDetector as OutlierDetector
from .predict import CatalogueReader as CatalogueReader
from .predict import predict_to_file as predict_to_file
