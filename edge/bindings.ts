/** What the Worker is configured with. All are texts; development keeps them in `.dev/edge.env`, production in Cloudflare's secrets. */
export interface Bindings {
  /** The edge's Ed25519 private key as a JWK. It signs tickets, resume tokens and assertions. */
  EDGE_SIGNING_KEY?: string;
  /** A JSON array of `{"name", "url"}`, in the order in which new sessions try them. */
  ORIGINS?: string;
  /** The customers' Ed25519 public key as a JWK: their JWTs of alg EdDSA are accepted. */
  CUSTOMER_JWT_PUBLIC_KEY?: string;
  /** The customers' shared secret, 32 bytes or more: their JWTs of alg HS256 are accepted. */
  CUSTOMER_JWT_SECRET?: string;
  /** The tenant of those who come without a JWT. Unset, as it is everywhere but in development, they are refused. */
  ANONYMOUS_TENANT?: string;
}
