import io.spiffe.bundle.x509bundle.X509BundleSet;
import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.TrustDomain;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultWorkloadApiClient.ClientOptions;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.DefaultX509Source.X509SourceOptions;
import io.spiffe.workloadapi.Watcher;
import io.spiffe.workloadapi.WorkloadApiClient;
import io.spiffe.workloadapi.X509Context;
import io.spiffe.workloadapi.X509Source;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.security.cert.X509Certificate;
import java.time.Duration;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * java-spiffe as a client of the agent: its source, its watchers, and its SSLContext at both ends of mTLS. Writes a line of
 * JSON for each thing that it learns, and ends when its standard input does.
 *
 * <p>Arguments: the agent's socket, and {@code svid}, {@code svids} or {@code bundles}. With {@code bundles} it only watches
 * trust bundles: a key in the TPM is not given to it. With {@code svids} it tells all the SVIDs that it gets. With {@code svid}, each line on standard input is the address of a server to do handshakes
 * with, in addition to its own.
 */
final class Interop {
    private static final TrustDomain DOMAIN = TrustDomain.parse("factory.example");
    private static final byte[] GREETING = "hello".getBytes(StandardCharsets.US_ASCII);
    private static final int HANDSHAKE_LIMIT_MS = 30_000;
    private static final Duration FIRST_SVID_LIMIT = Duration.ofSeconds(120);

    private static volatile boolean over = false;
    private static final Counts counts = new Counts();

    public static void main(String[] arguments) throws Exception {
        String address = "unix:" + arguments[0];
        List<String> servers = new CopyOnWriteArrayList<>();
        background(() -> {
            new BufferedReader(new InputStreamReader(System.in)).lines().forEach(servers::add);
            over = true;
        });
        WorkloadApiClient client =
            DefaultWorkloadApiClient.newClient(ClientOptions.builder().spiffeSocketPath(address).build());
        client.watchX509Bundles(watcher("java-spiffe watchX509Bundles", (X509BundleSet bundles) ->
            tellState("java-spiffe watchX509Bundles", null, authorities(bundles))));
        if (arguments[1].equals("svids")) {
            String all = client.fetchX509Context().getX509Svids().stream()
                .map(svid -> "[" + text(svid.getSpiffeId().toString()) + ", " + text(svid.getHint()) + "]")
                .collect(Collectors.joining(", "));
            tell("{\"client\": \"java-spiffe getX509Svids\", \"svids\": [" + all + "]}");
        }
        if (!arguments[1].equals("svid")) {
            while (!over) {
                Thread.sleep(100);
            }
            System.exit(0);
        }
        client.watchX509Context(watcher("java-spiffe watchX509Context", (X509Context context) ->
            tellState("java-spiffe watchX509Context", context.getDefaultSvid(),
                authorities(context.getX509BundleSet()))));

        X509Source source = DefaultX509Source.newSource(
            X509SourceOptions.builder().spiffeSocketPath(address).initTimeout(FIRST_SVID_LIMIT).build());
        background(() -> watch(source));

        SSLContext tls = SpiffeSslContextFactory.getSslContext(SslContextOptions.builder()
            .x509Source(source)
            .acceptedSpiffeIdsSupplier(() -> Set.of(source.getX509Svid().getSpiffeId()))
            .build());
        SSLServerSocket listener = (SSLServerSocket)
            tls.getServerSocketFactory().createServerSocket(0, 50, InetAddress.getLoopbackAddress());
        listener.setNeedClientAuth(true);
        String own = "127.0.0.1:" + listener.getLocalPort();
        ExecutorService served = Executors.newCachedThreadPool();
        background(() -> serve(listener, served));
        tell("{\"listening\": " + text(own) + "}");

        servers.add(own);
        while (!over) {
            for (String server : servers) {
                visit(tls, server);
            }
            Thread.sleep(10);
        }
        // The others stop their handshakes with this server first.
        served.shutdown();
        served.awaitTermination(HANDSHAKE_LIMIT_MS, TimeUnit.MILLISECONDS);
        counts.tell();
        System.exit(0);
    }

    /** The source has no call that waits for an update. */
    private static void watch(X509Source source) throws Exception {
        X509Svid svid = null;
        Collection<X509Certificate> authorities = null;
        while (!over) {
            X509Svid nextSvid = source.getX509Svid();
            Collection<X509Certificate> next = source.getBundleForTrustDomain(DOMAIN).getX509Authorities();
            if (!nextSvid.equals(svid) || !next.equals(authorities)) {
                svid = nextSvid;
                authorities = next;
                tellState("java-spiffe DefaultX509Source", svid, authorities);
            }
            Thread.sleep(20);
        }
    }

    private static void serve(SSLServerSocket listener, ExecutorService served) throws IOException {
        while (!over) {
            SSLSocket socket = (SSLSocket) listener.accept();
            served.execute(() -> counts.handshake("served by Java", () -> {
                try (socket) {
                    socket.setSoTimeout(HANDSHAKE_LIMIT_MS);
                    socket.startHandshake();
                    socket.getOutputStream().write(GREETING);
                    return (X509Certificate) socket.getSession().getPeerCertificates()[0];
                }
            }));
        }
    }

    /** Succeeds when the server has verified this end, too: in TLS 1.3 that shows in what is read. */
    private static void visit(SSLContext tls, String server) {
        counts.handshake("Java at " + server, () -> {
            try (SSLSocket socket = (SSLSocket) tls.getSocketFactory().createSocket()) {
                int colon = server.lastIndexOf(':');
                int port = Integer.parseInt(server.substring(colon + 1));
                socket.connect(new InetSocketAddress(server.substring(0, colon), port), HANDSHAKE_LIMIT_MS);
                socket.setSoTimeout(HANDSHAKE_LIMIT_MS);
                socket.startHandshake();
                byte[] read = socket.getInputStream().readAllBytes();
                if (!Arrays.equals(read, GREETING)) {
                    throw new IOException(read.length + " bytes were read, which are not the greeting");
                }
                X509Certificate shown = (X509Certificate) socket.getSession().getPeerCertificates()[0];
                socket.getSession().invalidate(); // a resumed session would be no handshake with the identity
                return shown;
            }
        });
    }

    /** The handshakes of this process. */
    private static final class Counts {
        private final Map<String, String> seen = new HashMap<>();
        private int done = 0;
        private int failed = 0;

        void handshake(String name, Action<X509Certificate> handshake) {
            try {
                succeeded(name, handshake.run().getSerialNumber().toString(16));
            } catch (Exception e) {
                failed(name, e);
            }
        }

        /** Also tells of each new certificate that the other end shows. */
        private synchronized void succeeded(String name, String serial) {
            done++;
            if (!serial.equals(seen.put(name, serial))) {
                Interop.tell("{\"client\": " + text(name) + ", \"serial\": " + text(serial) + "}");
            }
        }

        private synchronized void failed(String name, Exception why) {
            failed++;
            Interop.tell("{\"failed\": " + text("handshake, " + name + ": " + why) + "}");
        }

        synchronized void tell() {
            Interop.tell("{\"handshakes\": " + done + ", \"failures\": " + failed + "}");
        }
    }

    private static Collection<X509Certificate> authorities(X509BundleSet bundles) {
        return bundles.getBundles().get(DOMAIN).getX509Authorities();
    }

    private static void tellState(String client, X509Svid svid, Collection<X509Certificate> authorities) {
        String serial = svid == null
            ? "" : ", \"serial\": " + text(svid.getLeaf().getSerialNumber().toString(16));
        String anchors = authorities.stream().map(Interop::digest).sorted().map(Interop::text)
            .collect(Collectors.joining(", ", "[", "]"));
        tell("{\"client\": " + text(client) + serial + ", \"anchors\": " + anchors + "}");
    }

    private static String digest(X509Certificate certificate) {
        try {
            byte[] digest = MessageDigest.getInstance("SHA-256").digest(certificate.getEncoded());
            return HexFormat.of().formatHex(digest);
        } catch (GeneralSecurityException e) {
            throw new IllegalStateException(e);
        }
    }

    private static <T> Watcher<T> watcher(String client, java.util.function.Consumer<T> update) {
        return new Watcher<>() {
            @Override
            public void onUpdate(T news) {
                update.accept(news);
            }

            /** The client goes on after an error that is none of the final ones: a restart of the agent, say. */
            @Override
            public void onError(Throwable error) {
                tell("{\"note\": " + text(client + ": " + error) + "}");
            }
        };
    }

    private interface Action<T> {
        T run() throws Exception;
    }

    private interface Task {
        void run() throws Exception;
    }

    private static void background(Task task) {
        Thread thread = new Thread(() -> {
            try {
                task.run();
            } catch (Exception e) {
                if (!over) {
                    tell("{\"failed\": " + text(e.toString()) + "}");
                }
            }
        });
        thread.setDaemon(true);
        thread.start();
    }

    /** As JSON has it. */
    private static String text(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char one : text.toCharArray()) {
            if (one == '"' || one == '\\' || one < ' ') {
                quoted.append(String.format("\\u%04x", (int) one));
            } else {
                quoted.append(one);
            }
        }
        return quoted.append('"').toString();
    }

    private static synchronized void tell(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
