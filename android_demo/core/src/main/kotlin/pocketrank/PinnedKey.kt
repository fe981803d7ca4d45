package pocketrank

import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.Signature
import java.security.SignatureException
import java.security.interfaces.ECPublicKey
import java.security.spec.X509EncodedKeySpec
import java.util.Base64

/**
 * The public key that must have signed a bundle: ECDSA on P-256 with SHA-256 over the exact bytes of `manifest.json`.
 *
 * An app holds it as SPKI (SubjectPublicKeyInfo): the `.pub.pem` of `pocketrank keys new`, or its DER bytes.
 */
class PinnedKey private constructor(private val key: ECPublicKey) {
    /** First 16 hexadecimal digits of the SHA-256 of the SPKI. */
    val fingerprint: String = hexadecimal(MessageDigest.getInstance("SHA-256").digest(key.encoded)).take(16)

    /** Whether a signature in DER is this key's, of just this content. */
    fun signed(content: ByteArray, signature: ByteArray): Boolean = try {
        Signature.getInstance("SHA256withECDSA").run {
            initVerify(key)
            update(content)
            verify(signature)
        }
    } catch (_: SignatureException) {
        false // not even DER
    }

    companion object {
        private const val BEGIN = "-----BEGIN PUBLIC KEY-----"
        private const val END = "-----END PUBLIC KEY-----"
        private const val NEXT = "give the .pub.pem that `pocketrank keys new` wrote"
        private val P256_ORDER = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551".toBigInteger(16)

        /** @throws BadKey not a public P-256 key in PEM. */
        fun ofPem(pem: String): PinnedKey {
            if ("PRIVATE KEY" in pem) throw BadKey("the public key: a private key, which no device may hold; $NEXT")
            val body = pem.substringAfter(BEGIN, "").substringBefore(END, "")
            val spki = base64(body) ?: throw BadKey("the public key: not a public key in PEM; $NEXT")
            return ofSpki(spki)
        }

        /** @throws BadKey not a public P-256 key in DER. */
        fun ofSpki(spki: ByteArray): PinnedKey {
            val key = try {
                KeyFactory.getInstance("EC").generatePublic(X509EncodedKeySpec(spki)) as? ECPublicKey
            } catch (_: GeneralSecurityException) {
                null
            }
            if (key == null || key.params.order != P256_ORDER) {
                throw BadKey("the public key: not a key of the curve P-256; $NEXT")
            }
            return PinnedKey(key)
        }

        private fun base64(text: String): ByteArray? = try {
            Base64.getDecoder().decode(text.filterNot { it == '\n' || it == '\r' }).takeIf { it.isNotEmpty() }
        } catch (_: IllegalArgumentException) {
            null
        }
    }
}

internal fun hexadecimal(bytes: ByteArray): String = bytes.joinToString("") { "%02x".format(it) }
