#!/usr/bin/env bash
# Installs Chromium for the test that clicks through the web page, where apt may do so; that test is left out without it.

command -v chromium >/dev/null && exit 0
install=(apt-get install -y -qq --no-install-recommends chromium)
if [ "$(id -u)" != 0 ]; then
    install=(sudo -n "${install[@]}")
fi
if command -v apt-get >/dev/null && DEBIAN_FRONTEND=noninteractive "${install[@]}" >/dev/null 2>&1; then
    exit 0
fi
printf 'no Chromium: it cannot be installed here, so the web page is not clicked through\n' >&2
