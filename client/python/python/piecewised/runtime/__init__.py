"""What the worker's process and the executor's process must agree on.

Standard library and torch only, relative imports only: the client's wheel carries this package as
``piecewised.runtime``, and the daemon lays the same files beside the executor's source as
``piecewised_executor.runtime``.

* :mod:`.names`: the name of a function that a graph calls, and back;
* :mod:`.fingerprint`: which toolchain and devices a process has;
* :mod:`.kernels`: compiled C++ kernels by what was asked for, not by where they were built;
* :mod:`.expressions`: symbolic expressions, from sympy and back;
* :mod:`.outputs`: the structure of what a graph returns;
* :mod:`.load`: from a materialised artifact to a callable.
"""
