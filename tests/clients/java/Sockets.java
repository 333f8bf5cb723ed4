import jakarta.websocket.*;
import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.*;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.Collectors;
import okhttp3.*;
import okio.ByteString;
import org.java_websocket.client.WebSocketClient;
import org.java_websocket.handshake.ServerHandshake;

/** Libraries for WebSocket and NDJSON. */
class Sockets {
    static boolean isFinal(int code) { return code >= 4000 && code < 4100; }

    static boolean jdk(Driver.Job job) throws Exception {
        var ended = new CompletableFuture<Integer>();
        var builder = HttpClient.newHttpClient().newWebSocketBuilder();
        job.headers().forEach(builder::header);
        try {
            builder.buildAsync(URI.create(job.atCursor()), new WebSocket.Listener() {
                final StringBuilder text = new StringBuilder();
                final ByteArrayOutputStream bytes = new ByteArrayOutputStream();

                @Override public CompletionStage<?> onText(WebSocket socket, CharSequence part, boolean isLast) {
                    text.append(part);
                    if (isLast) {
                        job.frame(text.toString());
                        text.setLength(0);
                    }
                    socket.request(1);
                    return null;
                }

                @Override public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer data, boolean isLast) {
                    var part = new byte[data.remaining()];
                    data.get(part);
                    bytes.writeBytes(part);
                    if (isLast) {
                        job.frame(bytes.toByteArray());
                        bytes.reset();
                    }
                    socket.request(1);
                    return null;
                }

                @Override public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
                    job.error("closed " + code + " " + reason);
                    ended.complete(code);
                    return null;
                }

                @Override public void onError(WebSocket socket, Throwable problem) {
                    job.error(problem);
                    ended.complete(1006);
                }
            }).join();
        } catch (CompletionException problem) {
            if (!(problem.getCause() instanceof WebSocketHandshakeException refusal)) throw problem;
            return job.isRefused(refusal.getResponse().statusCode(), String.valueOf(refusal.getResponse().body()));
        }
        return isFinal(ended.get());
    }

    static boolean lines(Driver.Job job) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(job.atCursor())).header("Accept", "application/x-ndjson");
        job.headers().forEach(request::header);
        var answer = HttpClient.newHttpClient().send(request.build(), HttpResponse.BodyHandlers.ofLines());
        if (answer.statusCode() != 200) {
            return job.isRefused(answer.statusCode(), answer.body().collect(Collectors.joining()));
        }
        answer.body().forEach(job::frame);
        return false;
    }

    static boolean okHttp(Driver.Job job) throws Exception {
        var request = new Request.Builder().url(job.atCursor());
        job.headers().forEach(request::header);
        var ended = new CompletableFuture<Boolean>();
        new OkHttpClient().newWebSocket(request.build(), new WebSocketListener() {
            @Override public void onMessage(okhttp3.WebSocket socket, String text) { job.frame(text); }

            @Override public void onMessage(okhttp3.WebSocket socket, ByteString bytes) { job.frame(bytes.toByteArray()); }

            @Override public void onClosing(okhttp3.WebSocket socket, int code, String reason) {
                job.error("closed " + code + " " + reason);
                socket.close(1000, null);
                ended.complete(isFinal(code));
            }

            @Override public void onFailure(okhttp3.WebSocket socket, Throwable problem, Response answer) {
                job.error(problem);
                ended.complete(answer != null && job.isRefused(answer.code(), Sse.body(answer)));
            }
        });
        return ended.get();
    }

    /** A new client for each connection, since `reconnect()` keeps the old URL. */
    static boolean javaWebSocket(Driver.Job job) throws Exception {
        var ended = new int[] {1006};
        var said = new String[] {""};
        var client = new WebSocketClient(URI.create(job.atCursor()), job.headers()) {
            @Override public void onOpen(ServerHandshake handshake) {}

            @Override public void onMessage(String text) { job.frame(text); }

            @Override public void onMessage(ByteBuffer data) {
                var bytes = new byte[data.remaining()];
                data.get(bytes);
                job.frame(bytes);
            }

            @Override public void onClose(int code, String reason, boolean isRemote) {
                job.error("closed " + code + " " + reason);
                ended[0] = code;
                said[0] = String.valueOf(reason);
            }

            @Override public void onError(Exception problem) { job.error(problem); }
        };
        client.run();
        // It shows the status of a refused handshake only in the words of a close 1002.
        return isFinal(ended[0]) || (ended[0] == 1002 && said[0].matches(".*\\b40[0134]\\b.*"));
    }

    static boolean tyrus(Driver.Job job) throws Exception {
        var ended = new CompletableFuture<Integer>();
        var config = ClientEndpointConfig.Builder.create().configurator(new ClientEndpointConfig.Configurator() {
            @Override public void beforeRequest(Map<String, List<String>> headers) {
                job.headers().forEach((name, value) -> headers.put(name, List.of(value)));
            }
        }).build();
        ContainerProvider.getWebSocketContainer().connectToServer(new Endpoint() {
            @Override public void onOpen(Session session, EndpointConfig ignored) {
                session.addMessageHandler(String.class, job::frame);
                session.addMessageHandler(byte[].class, job::frame);
            }

            @Override public void onClose(Session session, CloseReason reason) {
                job.error("closed " + reason);
                ended.complete(reason.getCloseCode().getCode());
            }

            @Override public void onError(Session session, Throwable problem) { job.error(problem); }
        }, config, URI.create(job.atCursor()));
        return isFinal(ended.get());
    }
}
