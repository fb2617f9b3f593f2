"""Holds the events of GET /v1/watch against the description of the API, up to the first that shows an active device.

check_events.py DESCRIPTION SOCKET
"""

import json
import socket
import sys

import jsonschema_rs
import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    description = yaml.safe_load(file)
state_event = {"$ref": "#/components/schemas/StateEvent", "components": description["components"]}
validator = jsonschema_rs.Draft202012Validator(state_event)

with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(120)
    connection.connect(sys.argv[2])
    connection.sendall(b"GET /v1/watch HTTP/1.0\r\n\r\n")  # to HTTP/1.0 the events come without chunks
    for line in connection.makefile(encoding="utf-8"):
        name, _, data = line.partition(": ")
        if name != "data":
            continue
        event = json.loads(data)
        validator.validate(event)
        state = event["status"]["identities"][0]["state"]
        print(state)
        if state == "active":
            sys.exit()
sys.exit("the events ended before the device was active")
