"""OpenStack Swift in one process: the proxy, which speaks S3, over account, container and object servers in a folder.

    python swift_server.py FOLDER PORT

The folder must be on a file system with extended attributes. Prints its port once it answers.
"""

import os
import sys
from pathlib import Path

USER, KEY = "test:tester", "testing"

PROXY = f"""
[DEFAULT]
swift_dir = {{etc}}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors gatekeeper cache listing_formats bulk s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_{USER.replace(":", "_")} = {KEY} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


def main() -> None:
    import eventlet

    eventlet.monkey_patch()
    from eventlet import wsgi

    root, port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    etc, devices = root / "etc", root / "devices"
    etc.mkdir(exist_ok=True)
    (devices / "d").mkdir(parents=True, exist_ok=True)
    (etc / "swift.conf").write_text("[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n")
    (etc / "proxy.conf").write_text(PROXY.format(etc=etc))

    from swift.common import utils
    from swift.common.utils import config

    config.SWIFT_CONF_FILE = utils.SWIFT_CONF_FILE = str(etc / "swift.conf")
    utils.validate_hash_conf()

    from paste.deploy import loadapp
    from swift.account.server import AccountController
    from swift.common.ring import RingBuilder
    from swift.common.wsgi import SwiftHttpProtocol
    from swift.container.server import ContainerController
    from swift.obj.server import ObjectController

    quiet = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    conf = {
        "swift_dir": str(etc),
        "devices": str(devices),
        "mount_check": "false",
        "disable_fallocate": "true",
        "log_level": "ERROR",
    }
    servers = {"account": AccountController, "container": ContainerController, "object": ObjectController}
    for kind, server in servers.items():
        socket = eventlet.listen(("127.0.0.1", 0), backlog=512)
        ring = RingBuilder(0, 1, 0)  # one partition, one copy
        ring.add_dev(
            {
                "id": 0,
                "region": 1,
                "zone": 1,
                "weight": 1.0,
                "ip": "127.0.0.1",
                "port": socket.getsockname()[1],
                "device": "d",
            }
        )
        ring.rebalance()
        ring.get_ring().save(str(etc / f"{kind}.ring.gz"))
        eventlet.spawn(wsgi.server, socket, server(conf), quiet, protocol=SwiftHttpProtocol)
    socket = eventlet.listen(("127.0.0.1", port), backlog=512)
    print(socket.getsockname()[1], flush=True)
    wsgi.server(socket, loadapp(f"config:{etc}/proxy.conf"), quiet, protocol=SwiftHttpProtocol)


if __name__ == "__main__":
    main()
