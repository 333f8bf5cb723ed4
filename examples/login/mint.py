import base64, hmac, json, os, time

def mint(sub, seconds):
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
    claims = {"sub": sub, "exp": int(time.time()) + seconds}
    signed = part(b'{"alg":"HS256"}') + b"." + part(json.dumps(claims).encode())
    signature = hmac.digest(os.environ["TOKEN_SECRET"].encode(), signed, "sha256")
    return (signed + b"." + part(signature)).decode()
