<?php
function mint(string $sub, int $seconds): string {
    $part = fn(string $data) => rtrim(strtr(base64_encode($data), '+/', '-_'), '=');
    $claims = ['sub' => $sub, 'exp' => time() + $seconds];
    $signed = $part('{"alg":"HS256"}') . '.' . $part(json_encode($claims));
    return $signed . '.' . $part(hash_hmac('sha256', $signed, getenv('TOKEN_SECRET'), true));
}
