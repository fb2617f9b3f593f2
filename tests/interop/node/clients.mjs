// grpc-js and Node's own HTTP client as clients of the agent. Writes a line of JSON for each thing that it learns, and ends
// when its standard input does.
//
//     clients.mjs follow-svid|follow-bundles|calls|svids SOCKET

import { createHash, X509Certificate } from "node:crypto";
import http from "node:http";
import { Client, credentials, Metadata, status } from "@grpc/grpc-js";

const STREAMS = 20;
const REFUSALS = 50;
const IDLE_CONNECTIONS = 10;
const RETRY_DELAY_MS = 100;
// The agent closes idle connections after 30 seconds, and announces less.
const ALMOST_IDLE_LIMIT_MS = 28_000;

const [what, socket] = process.argv.slice(2);
process.stdin.resume().on("end", () => process.exit(0));
const tell = (line) => console.log(JSON.stringify(line));
const fail = (why) => tell({ failed: why });

const channel = new Client(`unix:${socket}`, credentials.createInsecure());
const bytes = (message) => message;
const withHeader = () => {
    const metadata = new Metadata();
    metadata.set("workload.spiffe.io", "true");
    return metadata;
};

/** The fields of a message in protobuf that are length-delimited: pairs of number and content. */
function* fields(message) {
    let at = 0;
    const varint = () => {
        for (let number = 0, shift = 1; ; shift *= 128) {
            const byte = message[at++];
            number += (byte & 0x7f) * shift;
            if (byte < 0x80) return number;
        }
    };
    while (at < message.length) {
        const number = varint() >> 3;
        const length = varint();
        yield [number, message.subarray(at, at + length)];
        at += length;
    }
}

const field = (message, wanted) => [...fields(message)].find(([number]) => number === wanted)[1];

/** Certificates in DER with nothing between them. */
function* certificates(der) {
    while (der.length > 0) {
        const certificate = new X509Certificate(der);
        yield certificate;
        der = der.subarray(certificate.raw.length);
    }
}

const anchors = (der) =>
    [...certificates(der)].map(({ raw }) => createHash("sha256").update(raw).digest("hex")).sort();

/** Opens a stream, and again whenever it ends: grpc-js does that for no one. */
function follow(method, update) {
    const stream = channel.makeServerStreamRequest(
        `/SpiffeWorkloadAPI/${method}`, bytes, bytes, Buffer.alloc(0), withHeader(),
    );
    stream.on("data", (message) => update(message));
    stream.on("error", (error) => {
        tell({ note: `${method}: ${error.message}` });
        update(null);
        setTimeout(() => follow(method, update), RETRY_DELAY_MS);
    });
}

function unary(path, message) {
    return new Promise((resolve) => {
        const deadline = Date.now() + 20_000;
        channel.makeUnaryRequest(path, bytes, bytes, message, withHeader(), { deadline }, (error, response) =>
            resolve(error === null ? { code: "OK", response } : { code: status[error.code] }));
    });
}

/** Streams on one connection, as all calls of a channel are. */
function streams() {
    const latest = Array(STREAMS).fill(null);
    let told = null;
    for (let stream = 0; stream < STREAMS; stream++) {
        follow("FetchX509Bundles", async (message) => {
            latest[stream] = message && JSON.stringify(anchors(field(field(message, 2), 2)));
            const [first] = latest;
            if (first === null || first === told || latest.some((one) => one !== first)) return;
            told = first;
            const { code } = await unary("/grpc.health.v1.Health/Check", Buffer.alloc(0));
            tell({ client: `grpc-js, ${STREAMS} streams`, anchors: JSON.parse(first), oneCallMore: code });
        });
    }
}

/** Each of many refused calls ends with its status, and with nothing else. */
async function refusals() {
    const codes = new Set();
    for (let call = 0; call < REFUSALS; call++) {
        codes.add((await unary("/SpiffeWorkloadAPI/FetchJWTSVID", Buffer.alloc(1000))).code);
        codes.add((await unary("/nothing/at.all", Buffer.alloc(1000))).code);
    }
    tell({ client: "grpc-js refusals", codes: [...codes] });
}

/**
 * Lets connections idle. Node closes one before the time that the response announces; without that it keeps it, and a request
 * in the moment in which the agent closes it ends with EPIPE.
 */
async function idleConnections() {
    const get = (agent) => new Promise((resolve, reject) => {
        http.get({ agent, socketPath: socket, path: "/healthz" }, (response) => {
            response.resume().on("end", () => resolve(response.headers["keep-alive"]));
        }).on("error", reject);
    });
    const announced = new Set();
    let [kept, errors] = [0, 0];
    await Promise.all(Array.from({ length: IDLE_CONNECTIONS }, async () => {
        // Without a time of its own, Node's agent does not read the one of the server.
        const agent = new http.Agent({ keepAlive: true, timeout: 60_000 });
        try {
            announced.add(await get(agent));
            await new Promise((resolve) => setTimeout(resolve, ALMOST_IDLE_LIMIT_MS));
            kept += Object.keys(agent.freeSockets).length;
            await get(agent);
        } catch (error) {
            errors += 1;
            tell({ note: `after an idle connection: ${error}` });
        }
        agent.destroy();
    }));
    tell({ client: "Node idle connections", kept, errors, announced: [...announced] });
}

if (what === "calls") {
    refusals().then(idleConnections).catch((error) => fail(String(error)));
} else if (what === "svids") {
    follow("FetchX509SVID", (message) => {
        if (message === null) return;
        const text = (svid, number) => field(svid, number).toString();
        const all = [...fields(message)].filter(([number]) => number === 1).map(([, svid]) => svid);
        tell({ client: "grpc-js all SVIDs", svids: all.map((svid) => [text(svid, 1), text(svid, 5)]) });
    });
} else {
    streams();
}
if (what === "follow-svid") {
    follow("FetchX509SVID", (message) => {
        if (message === null) return;
        const svid = field(message, 1);
        const [leaf] = certificates(field(svid, 2));
        const serial = leaf.serialNumber.toLowerCase().replace(/^0+/, "");
        tell({ client: "grpc-js FetchX509SVID", serial, anchors: anchors(field(svid, 4)) });
    });
}
