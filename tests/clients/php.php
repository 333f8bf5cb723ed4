<?php
// Listens with curl of PHP. It reads a job from each line of standard input, and prints what the library gave as
// JSON, one object on each line.
//
// Without `set` it reads to the end of one stream. With it the setting of docs/libraries.md is used.

const PAUSE_SECONDS = 0.1;
const FINAL_STATUSES = [400, 401, 403, 404];

final class Job {
    public float $due = 0;
    private string $pending = '';

    public function __construct(private array $job) {}

    public function say(array $what): void {
        fwrite(STDOUT, json_encode(['job' => $this->job['job']] + $what, JSON_THROW_ON_ERROR) . "\n");
    }

    public function handle(): CurlHandle {
        $this->pending = '';
        $handle = curl_init($this->job['url'] . '?after=' . $this->job['after']);
        $headers = ['Accept: application/x-ndjson'];
        if ($this->job['token']) $headers[] = 'Authorization: Bearer ' . $this->job['token'];
        curl_setopt_array($handle, [
            CURLOPT_HTTPHEADER => $headers,
            CURLOPT_WRITEFUNCTION => function ($handle, string $bytes): int {
                $this->pending .= $bytes;
                if (curl_getinfo($handle, CURLINFO_RESPONSE_CODE) === 200) $this->lines();
                return strlen($bytes);
            },
        ]);
        return $handle;
    }

    private function lines(): void {
        while (($end = strpos($this->pending, "\n")) !== false) {
            $line = substr($this->pending, 0, $end);
            $this->pending = substr($this->pending, $end + 1);
            $this->say(['type' => 'frame', 'frame' => $line]);
            $frame = json_decode($line, true, 512, JSON_THROW_ON_ERROR);
            $this->job['after'] = $frame[$frame['type'] === 'message' ? 'id' : 'cursor'] ?? $this->job['after'];
        }
    }

    // True if this listens again.
    public function ended(CurlHandle $handle): bool {
        $status = curl_getinfo($handle, CURLINFO_RESPONSE_CODE);
        $body = $status === 200 ? '' : $this->pending;
        $this->say(['type' => 'error', 'text' => "$status " . curl_error($handle) . $body]);
        if ($this->job['set'] && !in_array($status, FINAL_STATUSES, true)) {
            $this->due = microtime(true) + PAUSE_SECONDS;
            return true;
        }
        $this->say(['type' => 'end']);
        return false;
    }
}

$multi = curl_multi_init();
$running = new SplObjectStorage();
$waiting = [];
stream_set_blocking(STDIN, false);
$input = '';
while (!feof(STDIN)) {
    $input .= fread(STDIN, 65536);
    while (($end = strpos($input, "\n")) !== false) {
        $waiting[] = new Job(json_decode(substr($input, 0, $end), true));
        $input = substr($input, $end + 1);
    }
    foreach ($waiting as $at => $job) {
        if ($job->due > microtime(true)) continue;
        unset($waiting[$at]);
        $handle = $job->handle();
        $running[$handle] = $job;
        curl_multi_add_handle($multi, $handle);
    }
    curl_multi_exec($multi, $active);
    while ($done = curl_multi_info_read($multi)) {
        $handle = $done['handle'];
        $job = $running[$handle];
        if ($job->ended($handle)) $waiting[] = $job;
        curl_multi_remove_handle($multi, $handle);
        $running->detach($handle);
    }
    curl_multi_select($multi, 0.02);
    if (!$active) usleep(20000);
}
