"""One self-contained file per policy, ONNX or TorchScript: writers, parity check, metadata and a reference runner.

``onnx`` and ``onnxruntime`` are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from rlcore.export.cpp_policy import CppReport, write_cpp
from rlcore.export.deploy_yaml import deploy_yaml
from rlcore.export.metadata import ExportError, config_hash, read_metadata
from rlcore.export.onnx import broken_weights, export_onnx
from rlcore.export.parity import ParityReport, verify
from rlcore.export.prepared import ExportReport
from rlcore.export.runner import OnnxPolicy
from rlcore.export.show import shown
from rlcore.export.torchscript import TorchScriptPolicy, export_torchscript

__all__ = [
    "CppReport",
    "ExportError",
    "ExportReport",
    "OnnxPolicy",
    "ParityReport",
    "TorchScriptPolicy",
    "broken_weights",
    "config_hash",
    "deploy_yaml",
    "export_onnx",
    "export_torchscript",
    "read_metadata",
    "shown",
    "verify",
    "write_cpp",
]
