"""A server on h11, which holds its peer to the letter: h11_server.py ADDRESS PORT LOG.

Writes every request that it has seen as a line of JSON into LOG.
"""

import json
import socket
import sys
import threading

import h11

ADDRESS, PORT, LOG = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "a", buffering=1)


def events(stream, connection):
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(stream.recv(65536))
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return
        else:
            yield event


def serve(stream):
    connection = h11.Connection(h11.SERVER)
    try:
        while True:
            for event in events(stream, connection):
                if isinstance(event, h11.Request):
                    host = dict(event.headers).get(b"host", b"").decode("latin-1")
                    line = f"{event.method.decode('latin-1')} {event.target.decode('latin-1')}"
                    LOG.write(json.dumps({"method": event.method.decode("latin-1"), "line": line, "host": host}) + "\n")
                    if connection.they_are_waiting_for_100_continue:
                        stream.sendall(connection.send(h11.InformationalResponse(status_code=100, headers=[])))
                if isinstance(event, h11.EndOfMessage):
                    break
            else:
                return
            answer = h11.Response(status_code=200, headers=[("Content-Length", "2")])
            stream.sendall(connection.send(answer))
            stream.sendall(connection.send(h11.Data(data=b"ok")) + connection.send(h11.EndOfMessage()))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
    except (h11.RemoteProtocolError, h11.LocalProtocolError, OSError):
        pass
    finally:
        stream.close()


listener = socket.create_server((ADDRESS, PORT), backlog=256)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
