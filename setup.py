from setuptools import setup
setup(name="calrec_jax", version="0.1.0", packages=["calrec_jax","calrec_jax.tasks"], package_dir={"calrec_jax.tasks":"tasks"})
