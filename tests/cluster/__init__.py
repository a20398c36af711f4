"""Tests of the chart and the image on a real Kubernetes: KUBECONFIG names it, MILLRACE_TEST_IMAGE the image it has."""
