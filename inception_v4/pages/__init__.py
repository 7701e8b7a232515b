"""What people look at, and services that programs ask: heat maps, a run's report, servers, a model card.

Knows finished runs, evaluation and `Predictor`. Must never know training.
"""
