package pocketrank.sync

import com.sun.net.httpserver.HttpServer
import org.junit.jupiter.api.AfterEach
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import pocketrank.BadInput
import pocketrank.Dump
import pocketrank.MemoryStorage
import pocketrank.Ranker
import pocketrank.ort.OrtEngine
import java.io.File
import java.net.InetAddress
import java.net.InetSocketAddress

/** Against a server of the JDK's that answers as `pocketrank serve` does. */
class PackClientTest {
    private lateinit var server: HttpServer
    private val asked = ArrayList<String>()
    private var status = 200
    private var content = ByteArray(0)
    private val storage = MemoryStorage()
    private val ranker = Ranker.open(File(Dump.folder, "bundles/mean"), OrtEngine(), storage)
    private val client by lazy { PackClient("http://127.0.0.1:${server.address.port}/", "a.b.c") }

    @BeforeEach
    fun start() {
        server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/") { exchange ->
            val headers = exchange.requestHeaders
            asked.add("${exchange.requestURI} ${headers.getFirst("Authorization")} ${headers.getFirst("If-None-Match")}")
            exchange.responseHeaders.set("ETag", "\"1\"")
            exchange.responseHeaders.set("Location", "http://127.0.0.1:${server.address.port}/elsewhere")
            exchange.sendResponseHeaders(status, if (content.isEmpty()) -1 else content.size.toLong())
            if (content.isNotEmpty()) exchange.responseBody.write(content)
            exchange.close()
        }
        server.start()
    }

    @AfterEach
    fun stop() {
        server.stop(0)
        ranker.close()
    }

    private fun pack(name: String) = File(Dump.folder, "rankings/mean/$name.safetensors").readBytes()

    @Test
    fun `a new pack is taken in, and the same one not asked for again`() {
        content = pack("full")
        assertEquals(Synced.NEW, client.sync(ranker))
        assertEquals(6, ranker.stats().segments)
        content = ByteArray(0)
        status = 304
        assertEquals(Synced.SAME, client.sync(ranker))
        val path = "/v1/pack?encoder_id=${ranker.bundle.manifest.encoderId} Bearer a.b.c"
        assertEquals(listOf("$path null", "$path \"1\""), asked)
    }

    @Test
    fun `what the server says otherwise changes nothing, but that it forgot the user`() {
        content = pack("full")
        client.sync(ranker)
        val refused = listOf(200 to pack("of_another_encoder"), 200 to pack("short"), 200 to ByteArray(9), 401 to null, 302 to null)
        for ((code, body) in refused) {
            status = code
            content = body ?: ByteArray(0)
            assertEquals(Synced.REFUSED, client.sync(ranker), "$code")
            assertTrue(client.problem!!.isNotEmpty())
        }
        content = ByteArray(0)
        for ((code, wanted) in listOf(404 to Synced.NONE, 500 to Synced.OFFLINE, 503 to Synced.OFFLINE, 429 to Synced.OFFLINE)) {
            status = code
            assertEquals(wanted, client.sync(ranker), "$code")
        }
        assertTrue(asked.none { it.startsWith("/elsewhere") }, "a redirect was followed")
        assertEquals(6, ranker.stats().segments)
        status = 410
        assertEquals(Synced.GONE, client.sync(ranker))
        assertEquals(0, ranker.stats().segments)
        assertEquals(null, storage.pack)
    }

    @Test
    fun `nobody there is no error, and a token goes to no address in the open`() {
        server.stop(0)
        assertEquals(Synced.OFFLINE, client.sync(ranker))
        for (address in listOf("http://sync.example.org", "ftp://localhost", "localhost", "http://127.0.0.1.example.org", "")) {
            assertThrows<BadInput>(address) { PackClient(address, "a.b.c") }
        }
        PackClient("http://192.0.2.7:8000", "a.b.c", insecure = true)
        PackClient("https://sync.example.org", "a.b.c")
        for (token in listOf("", "a b", "a\nb", "é")) assertThrows<BadInput> { PackClient("https://sync.example.org", token) }
    }
}
