"""The calls that `import tpt_jax` offers; `tpt_jax/__init__.py` imports each when it is first used."""
