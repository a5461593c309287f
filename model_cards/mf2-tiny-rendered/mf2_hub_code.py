from .configuration_mf2 import MF2Config
from .configuration_mf2 import MF2QFormerConfig
from .configuration_mf2 import MF2VisionConfig
from .processing_mf2 import MF2ImageProcessor
from .processing_mf2 import MF2ImageProcessorPil
from .processing_mf2 import MF2Processor
from .modeling_mf2 import MF2ForCaptioning
from .modeling_mf2 import MF2ForFaceAnalysis
from .modeling_mf2 import MF2ForImageClassification
from .modeling_mf2 import MF2ForZeroShotImageClassification
from .modeling_mf2 import MF2Model
from .modeling_mf2 import MF2ForPreTraining
from .processing_mf2 import MF2FaceAnalysisPipeline
from .processing_mf2 import MF2ImageClassificationPipeline
from .processing_mf2 import MF2ImageToTextPipeline
from .processing_mf2 import MF2ZeroShotImageClassificationPipeline

try:
    from .dfn import DFNConfig, DFNModel
except ImportError:
    pass


__all__ = ['MF2Config', 'MF2FaceAnalysisPipeline', 'MF2ForCaptioning', 'MF2ForFaceAnalysis', 'MF2ForImageClassification', 'MF2ForPreTraining', 'MF2ForZeroShotImageClassification', 'MF2ImageClassificationPipeline', 'MF2ImageProcessor', 'MF2ImageProcessorPil', 'MF2ImageToTextPipeline', 'MF2Model', 'MF2Processor', 'MF2QFormerConfig', 'MF2VisionConfig', 'MF2ZeroShotImageClassificationPipeline']
