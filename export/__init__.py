"""One self-contained ONNX file per policy: writer, parity check, metadata and a reference runner.

``onnx`` and ``onnxruntime`` are imported on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from rlcore.export.cpp_policy import CppReport, write_cpp
from rlcore.export.deploy_yaml import deploy_yaml
from rlcore.export.metadata import ExportError, config_hash, read_metadata
from rlcore.export.onnx import ExportReport, broken_weights, export_onnx
from rlcore.export.parity import ParityReport, verify
from rlcore.export.runner import OnnxPolicy
from rlcore.export.show import shown

__all__ = [
    "CppReport",
    "ExportError",
    "ExportReport",
    "OnnxPolicy",
    "ParityReport",
    "broken_weights",
    "config_hash",
    "deploy_yaml",
    "export_onnx",
    "read_metadata",
    "shown",
    "verify",
    "write_cpp",
]
