from .html import write_report as write_report
from .plots import plot_accuracy_vs_depth as plot_accuracy_vs_depth
