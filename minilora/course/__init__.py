"""Homework: built, checked and graded with jupytext and nbgrader (python -m minilora.course --help).

The laws that an answer must obey are public (checks/): students run them in the notebook, and grading runs the same
with a seed of its own. Only NumPy is needed to do the homework; jupytext and nbgrader to build and to grade it.
"""
