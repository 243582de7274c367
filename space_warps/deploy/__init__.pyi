from .inference import InferenceModel as InferenceModel
