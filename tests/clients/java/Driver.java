import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.util.*;

/**
 * Listens with the libraries of Java. It reads a job from each line of standard input, and prints what the library
 * gave as JSON, one object on each line.
 *
 * Without `set` a library is used as its README shows. With it the setting of docs/libraries.md is used.
 */
class Driver {
    /** Reads until the connection ends, and returns true if the server has refused the request. */
    interface Library { boolean read(Job job) throws Exception; }

    static final Map<String, Library> LIBRARIES = Map.of(
        "okhttp-sse", Sse::okHttp,
        "okhttp-eventsource", Sse::launchDarkly,
        "Spring WebClient", Sse::spring,
        "Jersey SseEventSource", Sse::jersey,
        "HttpClient WebSocket", Sockets::jdk,
        "OkHttp WebSocket", Sockets::okHttp,
        "Java-WebSocket", Sockets::javaWebSocket,
        "Tyrus", Sockets::tyrus,
        "HttpClient ofLines", Sockets::lines);
    /** These come back by themselves, if at all. */
    static final Set<String> RETURNING = Set.of("okhttp-eventsource");
    static final List<Integer> FINAL = List.of(400, 401, 403, 404);
    static final int PAUSE_MILLISECONDS = 100;
    static final ObjectMapper JSON = new ObjectMapper();
    /** Some libraries print. Their lines go to standard error. */
    static final OutputStream OUTPUT = new BufferedOutputStream(new FileOutputStream(FileDescriptor.out));

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err);
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line; (line = lines.readLine()) != null; ) {
            var job = new Job(JSON.readTree(line));
            new Thread(job::run).start();
        }
        System.exit(0);
    }

    static class Job {
        final int number;
        final String library, url, token;
        final boolean set;
        volatile String cursor;

        Job(JsonNode job) {
            number = job.get("job").asInt();
            library = job.get("library").asText();
            url = job.get("url").asText();
            token = job.get("token").asText();
            cursor = job.get("after").asText();
            set = job.get("set").asBoolean();
        }

        void run() {
            boolean isRefused;
            do {
                isRefused = false;
                try {
                    isRefused = LIBRARIES.get(library).read(this);
                    Thread.sleep(PAUSE_MILLISECONDS);
                } catch (Exception problem) {
                    error(problem);
                }
            } while (set && !isRefused && !RETURNING.contains(library));
            say("type", "end");
        }

        void say(Object... pairs) {
            var what = new LinkedHashMap<String, Object>(Map.of("job", number));
            for (int at = 0; at < pairs.length; at += 2) what.put((String) pairs[at], pairs[at + 1]);
            try {
                var line = JSON.writeValueAsString(what) + "\n";
                synchronized (OUTPUT) {
                    OUTPUT.write(line.getBytes(StandardCharsets.UTF_8));
                    OUTPUT.flush();
                }
            } catch (IOException problem) {
                throw new UncheckedIOException(problem);
            }
        }

        void error(Object text) { say("type", "error", "text", String.valueOf(text)); }

        /** True if the request must not be repeated. */
        boolean isRefused(int status, String body) {
            error(status + " " + body);
            return FINAL.contains(status);
        }

        void sse(String id, String event, String data) {
            if (id != null && !id.isEmpty()) cursor = id;
            say("type", "sse", "id", id, "event", event, "data", data);
        }

        void frame(String text) {
            say("type", "frame", "frame", text);
            note(text);
        }

        void frame(byte[] bytes) {
            say("type", "bytes", "data", bytes);
            note(new String(bytes, StandardCharsets.UTF_8).split("\n")[0]);
        }

        private void note(String text) {
            try {
                var frame = JSON.readTree(text);
                var next = frame.path(frame.path("type").asText().equals("message") ? "id" : "cursor");
                if (next.isTextual()) cursor = next.asText();
            } catch (IOException problem) {
                error(problem);
            }
        }

        String atCursor() { return url + "?after=" + cursor; }

        boolean hasCursor() { return !cursor.equals("0"); }

        Map<String, String> headers() {
            return token.isEmpty() ? Map.of() : Map.of("Authorization", "Bearer " + token);
        }
    }
}
