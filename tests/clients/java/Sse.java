import com.launchdarkly.eventsource.*;
import jakarta.ws.rs.client.*;
import jakarta.ws.rs.core.HttpHeaders;
import jakarta.ws.rs.sse.SseEventSource;
import java.net.URI;
import java.time.Duration;
import java.util.concurrent.*;
import okhttp3.*;
import okhttp3.sse.EventSourceListener;
import okhttp3.sse.EventSources;
import org.springframework.core.ParameterizedTypeReference;
import org.springframework.http.MediaType;
import org.springframework.http.codec.ServerSentEvent;
import org.springframework.web.reactive.function.client.*;

/** Libraries for Server-Sent Events. */
class Sse {
    static final Duration READ_TIMEOUT = Duration.ofSeconds(60);

    static boolean okHttp(Driver.Job job) throws Exception {
        var client = job.set ? new OkHttpClient.Builder().readTimeout(READ_TIMEOUT).build() : new OkHttpClient();
        var request = new Request.Builder().url(job.url);
        job.headers().forEach(request::header);
        if (job.hasCursor()) request.header("Last-Event-ID", job.cursor);
        var ended = new CompletableFuture<Boolean>();
        EventSources.createFactory(client).newEventSource(request.build(), new EventSourceListener() {
            @Override public void onEvent(okhttp3.sse.EventSource source, String id, String type, String data) {
                job.sse(id, type, data);
            }

            @Override public void onClosed(okhttp3.sse.EventSource source) { ended.complete(false); }

            @Override public void onFailure(okhttp3.sse.EventSource source, Throwable problem, Response answer) {
                job.error(problem);
                ended.complete(answer != null && answer.code() != 200 && job.isRefused(answer.code(), body(answer)));
            }
        });
        return ended.get();
    }

    static String body(Response answer) {
        try {
            return answer.body().string();
        } catch (Exception problem) {
            return problem.toString();
        }
    }

    /** LaunchDarkly's okhttp-eventsource. */
    static boolean launchDarkly(Driver.Job job) throws Exception {
        var strategy = ConnectStrategy.http(URI.create(job.url));
        for (var header : job.headers().entrySet()) strategy = strategy.header(header.getKey(), header.getValue());
        if (job.set) strategy = strategy.readTimeout(READ_TIMEOUT.toSeconds(), TimeUnit.SECONDS);
        var builder = new com.launchdarkly.eventsource.EventSource.Builder(strategy)
            .retryDelay(Driver.PAUSE_MILLISECONDS, TimeUnit.MILLISECONDS);
        if (job.set) builder.errorStrategy(ErrorStrategy.alwaysContinue());
        try (var source = builder.build()) {
            for (var event : source.anyEvents()) {
                if (event instanceof MessageEvent message) {
                    job.sse(message.getLastEventId(), message.getEventName(), message.getData());
                } else if (event instanceof FaultEvent fault) {
                    job.error(fault.getCause());
                    if (fault.getCause() instanceof StreamHttpErrorException refusal
                        && Driver.FINAL.contains(refusal.getCode())) {
                        return true;
                    }
                }
            }
        }
        return false;
    }

    static boolean spring(Driver.Job job) throws Exception {
        var type = new ParameterizedTypeReference<ServerSentEvent<String>>() {};
        var request = WebClient.create().get().uri(URI.create(job.url)).accept(MediaType.TEXT_EVENT_STREAM);
        var events = request.headers(headers -> {
            job.headers().forEach(headers::set);
            if (job.hasCursor()) headers.set("Last-Event-ID", job.cursor);
        }).retrieve().bodyToFlux(type);
        try {
            for (var event : events.toIterable()) job.sse(event.id(), event.event(), event.data());
        } catch (WebClientResponseException refusal) {
            return job.isRefused(refusal.getStatusCode().value(), refusal.getResponseBodyAsString());
        }
        return false;
    }

    static boolean jersey(Driver.Job job) throws Exception {
        var client = ClientBuilder.newClient();
        client.register((ClientRequestFilter) request -> {
            job.headers().forEach((name, value) -> request.getHeaders().putSingle(name, value));
            if (job.set && job.hasCursor()) request.getHeaders().putSingle("Last-Event-ID", job.cursor);
        });
        var isRefused = new boolean[1];
        var builder = SseEventSource.target(client.target(job.url));
        try (var source = builder.reconnectingEvery(Driver.PAUSE_MILLISECONDS, TimeUnit.MILLISECONDS).build()) {
            source.register(event -> job.sse(event.getId(), event.getName(), event.readData()), problem -> {
                job.error(problem);
                isRefused[0] = problem instanceof jakarta.ws.rs.WebApplicationException refusal
                    && Driver.FINAL.contains(refusal.getResponse().getStatus());
            });
            source.open();
            while (source.isOpen()) Thread.sleep(Driver.PAUSE_MILLISECONDS);
        }
        client.close();
        return isRefused[0];
    }
}
