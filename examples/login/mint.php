<?php
function mint(string $sub, int $seconds): string {
    $secret = getenv('TOKEN_SECRET') ?: throw new Exception('TOKEN_SECRET is not set');
    $part = fn(string $data) => rtrim(strtr(base64_encode($data), '+/', '-_'), '=');
    $claims = ['sub' => $sub, 'exp' => time() + $seconds];
    $signed = $part('{"alg":"HS256"}') . '.' . $part(json_encode($claims));
    return $signed . '.' . $part(hash_hmac('sha256', $signed, $secret, true));
}
