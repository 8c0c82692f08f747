"""Evaluation: the tasks, their metrics, results files and reports."""
