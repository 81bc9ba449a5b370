"""Predictions outside of training: ONNX files and a predictor without TensorFlow, and bundles."""
