"""An HTTP service around an exported file: OpenVINO, micro-batches, one line for an error, a limit everywhere.

It needs ``pip install 'quantrim[serve]'``. TLS, authentication and rates per client are the reverse proxy's.
"""

from quantrim.serving.app import create_app
from quantrim.serving.artefact import Artefact, load_artefact
from quantrim.serving.limits import ServiceLimits
from quantrim.serving.server import serve

__all__ = ["Artefact", "ServiceLimits", "create_app", "load_artefact", "serve"]
