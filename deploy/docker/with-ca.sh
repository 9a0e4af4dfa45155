#!/bin/sh
# with-ca COMMAND…: pip, and what takes its settings, trusts secret ca.pem where one is given.
if [ -s /run/secrets/ca.pem ]; then
  export PIP_CERT=/run/secrets/ca.pem
fi
exec "$@"
