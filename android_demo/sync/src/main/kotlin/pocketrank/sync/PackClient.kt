package pocketrank.sync

import pocketrank.BadInput
import pocketrank.BadJson
import pocketrank.Json
import pocketrank.Pack
import pocketrank.PocketRankError
import pocketrank.Ranker
import pocketrank.oneLine
import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.MalformedURLException
import java.net.URL
import java.net.URLEncoder

/** What a sync came to; GONE: the server was told to forget the user, and so did the ranker, up to that time. */
enum class Synced { NEW, SAME, NONE, GONE, OFFLINE, REFUSED }

/**
 * Gets the newest pack of the token's user from `pocketrank serve`; see docs/sync.md. Only packs: a new bundle comes with
 * a new version of the app.
 *
 * The one part of the demo that needs the INTERNET permission. Redirects are not followed, so a token reaches no other
 * host; http is for this machine, or, where `insecure`, for a laptop beside a debug build. Call it off the UI thread.
 *
 * @throws BadInput not an address that a token may be sent to.
 */
class PackClient(address: String, private val token: String, insecure: Boolean = false) {
    private val where = address.trimEnd('/')

    /** What the last [sync] that was refused said. */
    var problem: String? = null
        private set

    init {
        val url = try {
            URL(where)
        } catch (_: MalformedURLException) {
            null
        }
        val isSafe = url?.protocol == "https" || url?.protocol == "http" && (insecure || url.host in HERE)
        if (!isSafe || url.host.isEmpty() || url.userInfo != null) {
            throw BadInput("sync: $where is not an https address, and a token is sent to no other; give the server's")
        }
        if (token.isEmpty() || token.any { it <= ' ' || it > '~' }) {
            throw BadInput("sync: the token has spaces or control characters in it; give it as it was issued")
        }
    }

    /** Asks once. Whatever goes wrong on the way, the ranker goes on with what it had. */
    fun sync(ranker: Ranker): Synced {
        problem = null
        val query = URLEncoder.encode(ranker.bundle.manifest.encoderId, "UTF-8")
        return try {
            val connection = URL("$where/v1/pack?encoder_id=$query").openConnection() as HttpURLConnection
            try {
                answered(connection, ranker)
            } finally {
                connection.disconnect()
            }
        } catch (_: IOException) {
            Synced.OFFLINE
        } catch (error: PocketRankError) {
            refused(error.message.orEmpty())
        }
    }

    private fun answered(connection: HttpURLConnection, ranker: Ranker): Synced {
        connection.instanceFollowRedirects = false
        connection.connectTimeout = CONNECT_MS
        connection.readTimeout = READ_MS
        connection.setRequestProperty("Authorization", "Bearer $token")
        ranker.etag?.let { connection.setRequestProperty("If-None-Match", it) }
        return when (val status = connection.responseCode) {
            HttpURLConnection.HTTP_OK -> {
                ranker.load(body(connection.inputStream), "the synced pack")
                ranker.etag = connection.getHeaderField("ETag")
                Synced.NEW
            }
            HttpURLConnection.HTTP_NOT_MODIFIED -> Synced.SAME
            HttpURLConnection.HTTP_NOT_FOUND -> Synced.NONE
            HttpURLConnection.HTTP_GONE -> {
                val untilUs = goneUntil(connection.errorStream?.let(::body) ?: ByteArray(0))
                if (untilUs == null) {
                    refused("$where answered 410, and does not say up to when the user was forgotten")
                } else {
                    ranker.forget(untilUs)
                    Synced.GONE
                }
            }
            in SERVER_ERRORS, TOO_MANY -> Synced.OFFLINE
            else -> refused("$where answered $status")
        }
    }

    private fun refused(why: String): Synced {
        problem = oneLine(why)
        return Synced.REFUSED
    }

    /** The time in what stands in the place of a forgotten user's pack; null for anything else. */
    private fun goneUntil(content: ByteArray): Long? = try {
        val found = Json.read(content, GONE_MOST, deepest = 4) as? Map<*, *>
        (found?.get("until_us") as? Long)?.takeIf { found["format"] == GONE }
    } catch (_: BadJson) {
        null
    }

    private fun body(stream: InputStream): ByteArray {
        val found = ByteArrayOutputStream()
        val block = ByteArray(BLOCK)
        while (true) {
            val n = stream.read(block)
            if (n < 0) return found.toByteArray()
            found.write(block, 0, n)
            if (found.size() > Pack.LARGEST) throw BadInput("the synced pack: more than ${Pack.LARGEST} bytes; nothing of it was kept")
        }
    }

    private companion object {
        const val CONNECT_MS = 5_000
        const val READ_MS = 10_000
        const val BLOCK = 8192
        const val TOO_MANY = 429
        const val GONE = "pocketrank.gone/1"
        const val GONE_MOST = 1000L
        val SERVER_ERRORS = 500..599
        val HERE = setOf("localhost", "127.0.0.1")
    }
}
